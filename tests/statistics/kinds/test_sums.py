"""Sums of the pass against the same quantities computed at once from all activations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.data.batches import as_batches
from secateur.statistics import Sums, observe
from tests.hosts import build, images_for
from tests.statistics.kinds.raw import raw

HOSTS = ["vit", "dinov2_registers", "vit_post_norm", "vit_qk_norm", "vit_swiglu"]


def pass_over(name: str, kind: str, owner: str) -> tuple[Sums, torch.nn.Module, Tensor]:
    """The sums of one kind over 5 images in batches of 2, the model and the images."""
    model = build(name)
    images = images_for(model, 5)
    return observe(model, as_batches(images, 2), [kind]).of(kind, owner), model, images


def same(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max())
    return torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", HOSTS)
def test_hidden_moments(name: str) -> None:
    sums, model, images = pass_over(name, "hidden_moments", "blocks.1.mlp")
    (x,) = raw(model, images, "blocks.1.mlp", "hidden")
    x_TF = x.flatten(0, 1)
    assert float(sums["count"]) == len(x_TF)
    assert same(sums["sum"], x_TF.sum(0)) and same(sums["gram"], x_TF.T @ x_TF)


@pytest.mark.parametrize("name", HOSTS)
def test_context_moments_are_joint_over_heads(name: str) -> None:
    sums, model, images = pass_over(name, "context_moments", "blocks.1.attn")
    (x,) = raw(model, images, "blocks.1.attn", "context")
    x_TU = x.flatten(2).flatten(0, 1)
    assert float(sums["count"]) == len(x_TU)
    assert same(sums["sum"], x_TU.sum(0)) and same(sums["gram"], x_TU.T @ x_TU)


@pytest.mark.parametrize(
    ("kind", "moments", "owner"),
    [
        ("hidden_energies", "hidden_moments", "blocks.0.mlp"),
        ("context_energies", "context_moments", "blocks.0.attn"),
    ],
)
def test_energies_are_the_diagonal_of_moments(kind: str, moments: str, owner: str) -> None:
    sums, _, _ = pass_over("vit", kind, owner)
    full, _, _ = pass_over("vit", moments, owner)
    assert same(sums["square"], full["gram"].diagonal().double())
    assert same(sums["sum"], full["sum"]) and sums["count"] == full["count"]


def test_moments_weigh_tokens_by_position() -> None:
    model = build("vit")
    images = images_for(model, 5)
    weights_N = torch.linspace(0.5, 2.0, 17)
    sums = observe(
        model,
        as_batches(images, 2),
        ["hidden_moments"],
        token_weights={"blocks.1.mlp": weights_N},
    ).of("hidden_moments", "blocks.1.mlp")
    (x,) = raw(model, images, "blocks.1.mlp", "hidden")
    w = weights_N.double()[None, :, None]
    assert float(sums["count"]) == pytest.approx(5 * float(weights_N.double().sum()), rel=1e-6)
    assert same(sums["sum"], (w * x).sum((0, 1)))
    assert same(sums["gram"], torch.einsum("bnf,bng->fg", w * x, x))


@pytest.mark.parametrize("name", HOSTS)
def test_logit_moments_centre_keys_over_the_tokens_of_an_image(name: str) -> None:
    sums, model, images = pass_over(name, "logit_moments", "blocks.2.attn")
    q, k = raw(model, images, "blocks.2.attn", "query", "key")
    k = k - k.mean(1, keepdim=True)
    assert float(sums["count"]) == q.shape[0] * q.shape[1]
    assert same(sums["q_gram"], torch.einsum("bnhk,bnhl->hkl", q, q))
    assert same(sums["k_gram"], torch.einsum("bnhk,bnhl->hkl", k, k))
    assert same(sums["q_sum"], q.sum((0, 1)))


def test_attention_moments_take_keys_as_the_softmax_weighs_them() -> None:
    sums, model, images = pass_over("vit", "attention_moments", "blocks.2.attn")
    q, k = raw(model, images, "blocks.2.attn", "query", "key")
    a_BHIJ = (torch.einsum("bihk,bjhk->bhij", q, k) * 8**-0.5).softmax(-1)
    mean = torch.einsum("bhij,bjhk->bhik", a_BHIJ, k)
    apart = k.permute(0, 2, 1, 3)[:, :, None] - mean[:, :, :, None]
    expected = torch.einsum("bhij,bhijk,bhijl->hkl", a_BHIJ, apart, apart)
    assert same(sums["q_gram"], torch.einsum("bnhk,bnhl->hkl", q, q))
    assert same(sums["k_gram"], expected)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("branch", ["blocks.1.attn", "blocks.1.mlp"])
def test_branch_similarity(name: str, branch: str) -> None:
    sums, model, images = pass_over(name, "branch_similarity", branch)
    stream, update = raw(model, images, branch, "stream", "update")
    tokens = stream.shape[0] * stream.shape[1]
    assert float(sums["count"]) == tokens
    assert same(sums["cosine"], F.cosine_similarity(stream, stream + update, dim=-1).sum())
    assert same(sums["stream_square"], stream.square().sum())
    assert same(sums["update_square"], update.square().sum())
    assert same(sums["update_sum"], update.sum((0, 1)))
    mean, _, _ = pass_over(name, "update_mean", branch)
    assert same(mean["update_sum"], update.sum((0, 1))) and float(mean["count"]) == tokens


def test_block_similarity_is_that_of_both_branches_together() -> None:
    sums, model, images = pass_over("vit", "block_similarity", "blocks.1")
    (before,) = raw(model, images, "blocks.1.attn", "stream")
    (after,) = raw(model, images, "blocks.2.attn", "stream")
    assert same(sums["cosine"], F.cosine_similarity(before, after, dim=-1).sum())
    assert same(sums["update_square"], (after - before).square().sum())
