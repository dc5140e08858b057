"""Effective ranks, head similarity and rank correlation, where the answer is known."""

import pytest
import torch

from secateur.analysis.agreement import rank_correlation
from secateur.analysis.heads import head_similarity
from secateur.analysis.spectra import effective_rank, spectra
from secateur.data.batches import as_batches
from secateur.models.family import family_of
from secateur.models.weights import AttentionWeights
from secateur.statistics import observe
from tests.hosts import anatomy_of, build, images_for

MOMENTS = ("attention_moments", "context_moments", "hidden_moments")


def test_effective_rank_of_known_spectra() -> None:
    assert float(effective_rank(torch.tensor([5.0, 0, 0, 0]))) == pytest.approx(1)
    assert float(effective_rank(torch.ones(7))) == pytest.approx(7)
    assert float(effective_rank(torch.tensor([1.0, 1, -1e-9]))) == pytest.approx(2)


def test_spectra_are_those_of_what_is_written() -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    statistics = observe(model, as_batches(images_for(model, 12), 4), MOMENTS)
    family, branch = family_of(model), anatomy.branches[0]
    weights = family.weights(model, branch)
    assert isinstance(weights, AttentionWeights)
    qk, vo = spectra(weights, statistics.about(branch.id))
    assert (qk.group, qk.size, vo.group, vo.size) == ("qk", 8, "vo", 8)
    sums = statistics.of("context_moments", branch.id)
    mean = sums["sum"] / sums["count"]
    cov = sums["gram"].double() / sums["count"] - torch.outer(mean, mean)
    ranks = []
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        w_DV = weights.o_DHV[:, head].double()
        written_DD = w_DV @ cov[own, own] @ w_DV.T
        ranks.append(float(effective_rank(torch.linalg.eigvalsh(written_DD))))
    assert vo.effective == pytest.approx(sum(ranks) / 4, rel=1e-4)
    (hidden,) = spectra(
        family.weights(model, anatomy.branches[1]), statistics.about(anatomy.branches[1].id)
    )
    for found in (qk, vo, hidden):
        assert float(found.share_S.sum()) == pytest.approx(1)
        assert 1 <= found.effective <= found.size and 1 <= found.most <= found.size


def test_a_duplicated_head_is_found() -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    qkv = model.get_submodule("blocks.1.attn.qkv")
    with torch.no_grad():
        for parameter in (qkv.weight, qkv.bias):
            rows = parameter.view(3, 4, 8, *parameter.shape[1:])
            rows[:, 3] = rows[:, 0]
    statistics = observe(model, as_batches(images_for(model, 8), 4), ["context_moments"])
    similarity = head_similarity(statistics.of("context_moments", "blocks.1.attn"), 4)
    assert torch.allclose(similarity, similarity.T)
    assert torch.allclose(similarity.diagonal(), torch.ones(4, dtype=torch.float64))
    assert float(similarity[0, 3]) == pytest.approx(1, abs=1e-4)
    assert float(similarity[0, 1]) < 0.95
    assert anatomy.branches[2].id == "blocks.1.attn"


def test_rank_correlation() -> None:
    lost = {"a": 0.1, "b": 3.0, "c": 0.5, "d": 0.2}
    assert rank_correlation({k: v**3 for k, v in lost.items()}, lost) == pytest.approx(1)
    assert rank_correlation({k: -v for k, v in lost.items()}, lost) == pytest.approx(-1)
    assert rank_correlation({"a": 1.0, "b": 2.0}, lost) is None
    assert rank_correlation(dict.fromkeys(lost, 1.0), lost) is None
