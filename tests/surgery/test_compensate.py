"""The closed-form correction of attention logits after query/key dims were removed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.weights import AttentionWeights
from secateur.statistics import observe
from secateur.statistics.moments import Moments
from secateur.surgery.repair import logit_map
from secateur.surgery.select import select
from tests.hosts import build, images_for


def pooled_error(q_TK: Tensor, k_TK: Tensor, kept_S: Tensor, map_SS: Tensor) -> float:
    """Squared error of all logits between all pairs of tokens, formed one by one."""
    logits = q_TK @ k_TK.T
    return float((logits - q_TK[:, kept_S] @ map_SS @ k_TK[:, kept_S].T).square().sum())


def activations(seed: int, rank: int = 6) -> tuple[Tensor, Tensor]:
    """Correlated queries and centred keys, 40 tokens of 6 dims, of a rank."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        mix = torch.randn(rank, 6, generator=generator, dtype=torch.float64)
        return torch.randn(40, rank, generator=generator, dtype=torch.float64) @ mix

    q_TK, k_TK = draw() + 0.7, draw()
    return q_TK, k_TK - k_TK.mean(0)


@pytest.mark.parametrize("ridge", [1e-8, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("rank", [6, 3, 2])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_worse_than_selection_alone(seed: int, rank: int, ridge: float) -> None:
    q_TK, k_TK = activations(seed, rank)
    for kept in ([0, 1, 2], [1, 4], [5]):
        kept_S = torch.tensor(kept)
        map_SS = logit_map(q_TK.T @ q_TK, k_TK.T @ k_TK, kept_S, "x", ridge)
        identity = torch.eye(len(kept), dtype=torch.float64)
        alone = pooled_error(q_TK, k_TK, kept_S, identity)
        assert pooled_error(q_TK, k_TK, kept_S, map_SS) <= alone * (1 + 1e-9)


def test_it_is_the_least_squares_solution_and_not_symmetric() -> None:
    q_TK, k_TK = activations(0)
    kept_S = torch.tensor([0, 2, 3])
    map_SS = logit_map(q_TK.T @ q_TK, k_TK.T @ k_TK, kept_S, "x", 1e-12)
    # Straight from the definition: vec(Q K^T) regressed on the products of single dims.
    design = torch.einsum("is,jt->ijst", q_TK[:, kept_S], k_TK[:, kept_S]).reshape(-1, 9)
    direct = torch.linalg.lstsq(design, (q_TK @ k_TK.T).reshape(-1, 1)).solution
    torch.testing.assert_close(map_SS, direct.view(3, 3), rtol=1e-6, atol=1e-8)
    assert float((map_SS - map_SS.T).abs().max()) > 0.01
    best = pooled_error(q_TK, k_TK, kept_S, map_SS)
    symmetric = pooled_error(q_TK, k_TK, kept_S, (map_SS + map_SS.T) / 2)
    assert best < symmetric


def test_all_dims_kept_or_nothing_shared_is_the_identity() -> None:
    q_TK, k_TK = activations(1)
    gram_q, gram_k = q_TK.T @ q_TK, k_TK.T @ k_TK
    identity = torch.eye(6, dtype=torch.float64)
    assert torch.equal(logit_map(gram_q, gram_k, torch.arange(6), "x"), identity)
    apart = torch.diag(torch.arange(1.0, 7.0).double())
    assert torch.equal(logit_map(apart, gram_k, torch.arange(3), "x"), identity[:3, :3])


@pytest.mark.parametrize("heads", [None, (1, 3)])
@torch.no_grad()
def test_folded_weights_give_the_logits_of_the_map(heads: tuple[int, ...] | None) -> None:
    model = build("vit")
    branch = read(model).branches[0]
    weights = family_of(model).weights(model, branch)
    assert isinstance(weights, AttentionWeights)
    sums = observe(model, as_batches(images_for(model, 8), 4), {"logit_moments"})
    about = sums.of("logit_moments", branch.id)
    kept = ((0, 3, 5), (1, 2, 7), (0, 1, 2), (4, 5, 6))
    units = {"qk": kept} if heads is None else {"qk": kept, "heads": heads}
    smaller = select(weights, units, _known(), "least_squares", branch.id, about)
    plain = select(weights, units, _known(), "none", branch.id, about)
    assert isinstance(smaller, AttentionWeights) and isinstance(plain, AttentionWeights)
    assert smaller.scale == weights.scale and smaller.shape == plain.shape
    x_TD = torch.randn(9, 32, dtype=torch.float64)
    for place, head in enumerate(heads or range(4)):
        kept_S = torch.tensor(kept[head])
        map_SS = logit_map(about["q_gram"][head], about["k_gram"][head], kept_S, "x")
        expected = _queries(plain, x_TD, place) @ map_SS @ _keys(plain, x_TD, place).T
        found = _queries(smaller, x_TD, place) @ _keys(smaller, x_TD, place).T
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_symmetrised_variant_folds_the_symmetric_part_only() -> None:
    model = build("vit")
    branch = read(model).branches[0]
    weights = family_of(model).weights(model, branch)
    assert isinstance(weights, AttentionWeights)
    about = observe(model, as_batches(images_for(model, 8), 4), {"logit_moments"}).of(
        "logit_moments", branch.id
    )
    units = {"qk": ((0, 3, 5), (1, 2, 7), (0, 1, 2), (4, 5, 6))}
    found = select(weights, units, _known(), "least_squares_symmetric", branch.id, about)
    plain = select(weights, units, _known(), "none", branch.id, about)
    assert isinstance(found, AttentionWeights) and isinstance(plain, AttentionWeights)
    x_TD = torch.randn(9, 32, dtype=torch.float64)
    for head in range(4):
        kept_S = torch.tensor(units["qk"][head])
        map_SS = logit_map(about["q_gram"][head], about["k_gram"][head], kept_S, "x")
        wanted = _queries(plain, x_TD, head) @ (map_SS + map_SS.T) @ _keys(plain, x_TD, head).T / 2
        logits = _queries(found, x_TD, head) @ _keys(found, x_TD, head).T
        torch.testing.assert_close(logits, wanted)


@torch.no_grad()
def test_duplicated_dims_go_without_loss() -> None:
    model = build("vit_no_biases")
    branch = read(model).branches[0]
    weights = family_of(model).weights(model, branch)
    assert isinstance(weights, AttentionWeights)
    twice = replace(
        weights,
        q_HKD=torch.cat([weights.q_HKD[:, :4]] * 2, 1),
        k_HKD=torch.cat([weights.k_HKD[:, :4]] * 2, 1),
    )
    family_of(model).assign_(model, branch, twice)
    statistics = observe(model, as_batches(images_for(model, 16), 16), {"logit_moments"})
    about = statistics.of("logit_moments", branch.id)
    units = {"qk": ((0, 1, 2, 3),) * 4}
    smaller = select(twice, units, _known(), "least_squares", branch.id, about)
    assert isinstance(smaller, AttentionWeights)
    x_TD = torch.randn(9, 32, dtype=torch.float64)
    for head in range(4):
        expected = _queries(twice, x_TD, head) @ _keys(twice, x_TD, head).T
        found = _queries(smaller, x_TD, head) @ _keys(smaller, x_TD, head).T
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _known() -> Moments:
    return Moments(mean_U=torch.zeros(32).double(), cov_UU=torch.eye(32).double(), count=1.0)


def _queries(weights: AttentionWeights, x_TD: Tensor, head: int) -> Tensor:
    return _linear(weights.q_HKD, weights.qb_HK, x_TD, head)


def _keys(weights: AttentionWeights, x_TD: Tensor, head: int) -> Tensor:
    return _linear(weights.k_HKD, weights.kb_HK, x_TD, head)


def _linear(w_HKD: Tensor, b_HK: Tensor | None, x_TD: Tensor, head: int) -> Tensor:
    y_TK = x_TD @ w_HKD[head].double().T
    return y_TK if b_HK is None else y_TK + b_HK[head].double()
