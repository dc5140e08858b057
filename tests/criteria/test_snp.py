"""SNP's criterion against a naive N×N decomposition and hand-computed values."""

import math

import pytest
import torch
from torch import Tensor

from secateur.anatomy.weights import AttentionWeights, MlpWeights
from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.criteria.scores.snp import dissimilarity
from secateur.evidence import evidence_kinds
from secateur.evidence.sorts.snp import alignment, leading
from secateur.pipeline import prune
from tests.hosts import build, images_for


def naive(q_NK: Tensor, k_NK: Tensor, gamma: int) -> Tensor:
    """The published formula word by word, with every N×N matrix formed."""
    u_NN, s_N, vt_NN = torch.linalg.svd(q_NK.double() @ k_NK.double().T)
    scores = []
    for q_N, k_N in zip(q_NK.double().T, k_NK.double().T, strict=True):
        own = torch.outer(q_N, k_N)
        total = torch.zeros((), dtype=torch.float64)
        for j in range(gamma):
            component = s_N[j] * torch.outer(u_NN[:, j], vt_NN[j])
            cosine = (component * own).sum() / (component.norm() * own.norm())
            total += cosine.abs()
        scores.append(total)
    return torch.stack(scores)


@pytest.mark.parametrize(
    ("tokens", "dims", "gamma"), [(50, 8, 4), (50, 8, 8), (17, 16, 3), (5, 8, 4)]
)
def test_the_core_equals_the_naive_decomposition(tokens: int, dims: int, gamma: int) -> None:
    generator = torch.Generator().manual_seed(tokens + gamma)
    q_NK = torch.randn(tokens, dims, generator=generator) + 0.5
    k_NK = torch.randn(tokens, dims, generator=generator) * torch.arange(1, dims + 1)
    found = alignment(q_NK, k_NK, gamma)
    torch.testing.assert_close(found, naive(q_NK, k_NK, gamma), rtol=0, atol=1e-5)


def test_orthogonal_dims_score_one_if_they_lead_and_zero_if_not() -> None:
    q_NK = torch.diag(torch.tensor([1.0, 5.0, 3.0]))
    k_NK = torch.eye(3)
    assert alignment(q_NK, k_NK, 1).tolist() == pytest.approx([0, 1, 0])
    assert alignment(q_NK, k_NK, 2).tolist() == pytest.approx([0, 1, 1])
    q_NK[:, 2] = 0
    assert alignment(q_NK, k_NK, 2)[2] == 0


def test_evidence_is_the_mean_over_images_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    q_BNHK, k_BNHK = torch.randn(2, 3, 12, 2, 4, generator=generator)
    update = evidence_kinds.get("snp_scores").update
    sums: dict[str, Tensor] = {}
    update(sums, {"query": q_BNHK[:2], "key": k_BNHK[:2]})
    update(sums, {"query": q_BNHK[2:], "key": k_BNHK[2:]})
    question = Question(
        group="qk", owner="x", weights=None, sums={"snp_scores": sums}, images=3, seed=0
    )
    found = score(criteria.get("snp"), question)
    each = [naive(q_BNHK[b, :, 1], k_BNHK[b, :, 1], leading(4)) for b in range(3)]
    torch.testing.assert_close(found[1], torch.stack(each).mean(0), rtol=0, atol=1e-5)


def test_half_of_the_dims_lead() -> None:
    assert [leading(64), leading(5), leading(1)] == [32, 2, 1]


def test_rows_unlike_all_others_are_worth_most() -> None:
    rows = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    h = 1 - math.sqrt(0.5)
    # Pairs: rows 0 and 1 are parallel; row 2 is at 90 degrees to them; row 3 at 45 to all.
    expected = [1 + h + 1, 1 + h + 1, 2 + h + 1, 3 * h + 1, 0]
    assert dissimilarity(rows).tolist() == pytest.approx(expected, abs=1e-6)


def test_values_are_compared_across_heads_and_neurons_with_all_readers() -> None:
    rows_UD = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    some = torch.ones(2, 3, 5)
    attention = AttentionWeights(
        q_HKD=some, k_HKD=some, v_HVD=rows_UD.view(2, 3, 5), o_DHV=torch.ones(5, 2, 3),
        qb_HK=None, kb_HK=None, vb_HV=None, ob_D=None, scale=1.0,
    )  # fmt: skip
    gated = MlpWeights(
        readers_FD=(rows_UD[:, :2], rows_UD[:, 2:]), reader_biases_F=(None, None),
        w2_DF=torch.ones(5, 6), b2_D=None,
    )  # fmt: skip
    expected = torch.tensor(
        [sum(1 - abs(torch.cosine_similarity(a, b, dim=0)) for b in rows_UD) for a in rows_UD]
    ).double()
    for group, weights in (("vo", attention), ("hidden", gated)):
        question = Question(group=group, owner="x", weights=weights, sums={}, images=0, seed=0)
        found = score(criteria.get("snp"), question)
        assert found.shape == ((2, 3) if group == "vo" else (6,))
        torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_preset_end_to_end() -> None:
    model = build("vit")
    fine = {"qk": 2, "vo": 2, "hidden": 4}
    calibration = images_for(model, 6, seed=1)
    halved = prune(model, calibration, "50% qk, 50% hidden", preset="snp", align=fine, minimum=fine)
    assert {s.qk for s in halved.plan.shapes.values() if hasattr(s, "qk")} == {4}
    result = prune(model, calibration, "60% macs", preset="snp", align=fine, minimum=fine)
    assert result.cost.macs <= 0.6 * result.before.cost().macs
    assert bool(torch.isfinite(result.model(images_for(model))).all())
    random = prune(model, calibration, "50% qk", preset="random", align=fine, minimum=fine)
    assert random.plan.units != halved.plan.units
