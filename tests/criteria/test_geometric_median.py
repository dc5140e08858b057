import pytest
import torch

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.criteria.scores.geometric_median import distances
from tests.criteria.test_scores import ATTENTION, GATED, MLP, close, worth


def test_values_by_hand() -> None:
    """Rows of fc1 (3,0), (0,1), (2,2): distances √10, √5 and √5 between them."""
    pairs = {"01": 10**0.5, "02": 5**0.5, "12": 5**0.5}
    expected = [pairs["01"] + pairs["02"], pairs["01"] + pairs["12"], pairs["02"] + pairs["12"]]
    assert close(worth("geometric_median", "hidden", MLP), expected)
    # Gate and value rows end to end: (1,2) and (2,0).
    assert close(worth("geometric_median", "hidden", GATED), [5**0.5] * 2)


def test_values_of_attention_by_hand() -> None:
    """One dim per head has nothing to stand in for it; value rows compare over all heads."""
    assert close(worth("geometric_median", "qk", ATTENTION), [[0.0], [0.0]])
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [6.0, 0.0]])
    expected = (rows[:, None] - rows).norm(dim=2).sum(1).view(2, 2)
    assert close(worth("geometric_median", "vo", ATTENTION), expected.tolist())


def test_a_unit_at_the_median_goes_first() -> None:
    around = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = distances(torch.cat([around, torch.zeros(1, 2)]))
    assert int(found.argmin()) == 4


def test_like_units_are_at_no_distance() -> None:
    row = 1e3 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distances(row.expand(5, 64)), torch.zeros(5, dtype=torch.float64))


def test_heads_are_not_scored() -> None:
    question = Question(group="heads", owner="b", weights=ATTENTION, sums={}, images=1, seed=0)
    with pytest.raises(Exception, match="cannot score 'heads'"):
        score(criteria.get("geometric_median"), question)
