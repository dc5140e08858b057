from dataclasses import fields

import pytest
import torch

from secateur.models.family import family_of, read
from secateur.models.types import AttentionShape, MlpShape
from secateur.models.weights import AttentionWeights, MlpWeights
from tests.hosts import HOSTS, build, shared


@pytest.mark.parametrize("name", HOSTS)
def test_shapes_agree_with_the_anatomy(name: str) -> None:
    model = shared(name)
    for branch in read(model).branches:
        assert family_of(model).weights(model, branch).shape == branch.shape


@pytest.mark.parametrize("name", ["vit", "vit_no_biases", "dinov2_swiglu_packed", "vit_swiglu"])
@torch.no_grad()
def test_canonical_mlps_compute_what_the_host_does(name: str) -> None:
    model = build(name)
    weights = family_of(model).weights(model, read(model).branches[1])
    assert isinstance(weights, MlpWeights)
    mlp = model.blocks[0].mlp
    x = torch.randn(3, 32)
    read_out = [
        x @ w.T + (0 if b is None else b)
        for w, b in zip(weights.readers_FD, weights.reader_biases_F, strict=True)
    ]
    hidden = mlp.act(read_out[0])
    if len(read_out) == 2:
        hidden = hidden * read_out[1]
    expected = hidden @ weights.w2_DF.T + (0 if weights.b2_D is None else weights.b2_D)
    assert torch.allclose(mlp(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "vit_no_biases", "vit_two_wide_heads"])
@torch.no_grad()
def test_canonical_attention_computes_what_the_host_does(name: str) -> None:
    model = build(name)
    w = family_of(model).weights(model, read(model).branches[0])
    assert isinstance(w, AttentionWeights)
    x = torch.randn(2, 5, 32)

    def project(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.einsum("bnd,hkd->bhnk", x, weight) + (0 if bias is None else bias[:, None])

    q, k, v = project(w.q_HKD, w.qb_HK), project(w.k_HKD, w.kb_HK), project(w.v_HVD, w.vb_HV)
    context = (w.scale * q @ k.transpose(-1, -2)).softmax(-1) @ v
    expected = torch.einsum("bhnv,dhv->bnd", context, w.o_DHV)
    expected = expected + (0 if w.ob_D is None else w.ob_D)
    assert torch.allclose(model.blocks[0].attn(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "vit_no_biases"])
def test_casts_reach_every_tensor_and_keep_the_values(name: str) -> None:
    for branch in read(shared(name)).branches[:2]:
        weights = family_of(shared(name)).weights(shared(name), branch)
        doubled = weights.to(torch.float64)
        assert type(doubled) is type(weights) and doubled.shape == weights.shape
        for field in fields(weights):
            old, new = getattr(weights, field.name), getattr(doubled, field.name)
            pairs = zip(old, new, strict=True) if isinstance(old, tuple) else [(old, new)]
            for a, b in pairs:
                if isinstance(a, torch.Tensor):
                    assert b.dtype == torch.float64 and torch.equal(a.double(), b)
                    assert not b.requires_grad
                else:
                    assert a == b


@pytest.mark.parametrize("name", ["vit", "vit_no_biases", "vit_swiglu"])
def test_empty_weights_have_the_shape_and_the_biases_of_the_host(name: str) -> None:
    attention, mlp = (
        family_of(shared(name)).weights(shared(name), branch)
        for branch in read(shared(name)).branches[:2]
    )
    assert isinstance(attention, AttentionWeights) and isinstance(mlp, MlpWeights)
    shape = AttentionShape(heads=3, qk=2, vo=5)
    empty = AttentionWeights.empty(shape, attention)
    assert empty.shape == shape and empty.scale == attention.scale
    assert (empty.qb_HK is None) is (attention.qb_HK is None)
    assert empty.vb_HV is None or empty.vb_HV.shape == (3, 5)
    small = MlpWeights.empty(MlpShape(hidden=7), mlp)
    assert small.shape == MlpShape(hidden=7)
    assert [w.shape for w in small.readers_FD] == [(7, 32)] * len(mlp.readers_FD)
    assert [b is None for b in small.reader_biases_F] == [b is None for b in mlp.reader_biases_F]
