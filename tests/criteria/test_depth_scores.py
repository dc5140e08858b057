"""Scores of whole layers against values by hand, on sums of tokens that are written down."""

import math

import pytest
import torch
from torch import Tensor

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question
from secateur.models.types import GroupName
from secateur.statistics import Sums, statistics_kinds

STREAM = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
UPDATE = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
"""The first token turns by 45 degrees, the second grows by half."""


def sums_of(kind: str, **seen: Tensor) -> dict[str, Sums]:
    sums: Sums = {}
    statistics_kinds.get(kind).update(sums, seen)
    return {kind: sums}


def worth(name: str, sums: dict[str, Sums], group: GroupName = "branch") -> float:
    question = Question(group=group, owner="b", weights=None, sums=sums, images=1, seed=0)
    return float(score(criteria.get(name), question))


@pytest.mark.parametrize("group", ["branch", "block"])
def test_angles_and_lengths_are_means_over_tokens(group: GroupName) -> None:
    sums = sums_of(f"{group}_similarity", stream=STREAM, update=UPDATE)
    assert worth("angle", sums, group) == pytest.approx((0.25 + 0) / 2)
    assert worth("cosine", sums, group) == pytest.approx(1 - (math.sqrt(0.5) + 1) / 2)
    assert worth("relative_norm", sums, group) == pytest.approx((1 / 1 + 1 / 2) / 2)


def test_a_few_huge_dims_hide_a_turn_from_the_cosine_but_not_from_the_length() -> None:
    plain = sums_of("branch_similarity", stream=torch.ones(1, 1, 4), update=torch.ones(1, 1, 4))
    assert worth("cosine", plain) == pytest.approx(0, abs=1e-6)
    assert worth("relative_norm", plain) == pytest.approx(1)


def test_an_affine_update_is_no_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, 3, generator=generator)
    affine = x @ torch.randn(3, 3, generator=generator) + 5
    assert worth("nonlinearity", sums_of("linear_moments", input=x, update=affine)) < 1e-4
    constant = torch.ones(2, 50, 3)
    assert worth("nonlinearity", sums_of("linear_moments", input=x, update=constant)) < 1e-4


def test_what_no_line_explains_is_the_loss() -> None:
    # y = x^2 on symmetric x has no linear part at all; y = x + x^2 has as much as its variance.
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0]).view(1, 4, 1)
    assert worth("nonlinearity", sums_of("linear_moments", input=x, update=x**2)) == pytest.approx(
        1
    )
    half = worth("nonlinearity", sums_of("linear_moments", input=x, update=x + x**2))
    assert half == pytest.approx(2.25 / (2.25 + 2.5), rel=1e-4)


def test_entropy_is_that_of_gaussians() -> None:
    # Channels with standard deviations 1 and 4 whatever their means: sqrt(1 * 4).
    update = torch.tensor([[8.0, 3.0], [6.0, -5.0], [8.0, 3.0], [6.0, -5.0]]).view(1, 4, 2)
    sums = sums_of("linear_moments", input=torch.zeros_like(update), update=update)
    assert worth("entropy", sums) == pytest.approx(2)
    wider = sums_of("linear_moments", input=torch.zeros_like(update), update=3 * update)
    assert worth("entropy", wider) == pytest.approx(6)


def test_a_constant_update_says_nothing() -> None:
    constant = torch.ones(1, 4, 2)
    sums = sums_of("linear_moments", input=constant, update=constant)
    assert worth("entropy", sums) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("group", ["branch", "block"])
def test_cka_sees_neither_scale_nor_rotation_nor_shift(group: GroupName) -> None:
    kind = "stream_moments" if group == "branch" else "block_stream_moments"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, 2, generator=generator)
    turned = 3 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 7
    assert worth("cka", sums_of(kind, stream=x, update=turned - x), group) < 1e-4
    assert worth("cka", sums_of(kind, stream=x, update=torch.zeros_like(x)), group) < 1e-6


def test_cka_by_hand() -> None:
    # x = (a, b), after = (a, 0), a and b uncorrelated with variance 1: 1 - 1 / (sqrt(2) * 1).
    a = torch.tensor([1.0, 1.0, -1.0, -1.0])
    b = torch.tensor([1.0, -1.0, 1.0, -1.0])
    x = torch.stack([a, b], 1)[None]
    update = torch.stack([0 * a, -b], 1)[None]
    found = worth("cka", sums_of("stream_moments", stream=x, update=update))
    assert found == pytest.approx(1 - 1 / math.sqrt(2), abs=1e-5)


@pytest.mark.parametrize("group", ["branch", "block"])
def test_damages_are_means_over_images(group: GroupName) -> None:
    sums = {
        f"{group}_removal": {
            "images": torch.tensor(4.0),
            "delta_kl": torch.tensor(2.0),
            "delta_ce": torch.tensor(-1.0),
            "delta_angle": torch.tensor(3.0),
        }
    }
    assert worth("delta_kl", sums, group) == 0.5 and worth("delta_ce", sums, group) == -0.25
    assert worth("delta_angle", sums, group) == 0.75


@pytest.mark.parametrize("group", ["branch", "block"])
def test_canonical_correlations_see_no_invertible_map(group: GroupName) -> None:
    kind = "stream_moments" if group == "branch" else "block_stream_moments"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 500, 3, generator=generator)
    mixed = x @ torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]]) + 7
    assert worth("cca", sums_of(kind, stream=x, update=mixed - x), group) < 1e-3
    other = torch.randn(2, 500, 3, generator=generator)
    assert worth("cca", sums_of(kind, stream=x, update=other - x), group) == pytest.approx(
        3, abs=0.1
    )


def test_canonical_correlations_by_hand_and_in_part_of_the_space() -> None:
    # From x = (a, b, 0): (a, a + b, 0) is nothing new, (a, c, 0) has the correlations 1 and 0.
    a = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    b = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    c = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    x = torch.stack([a, b, 0 * a], 1)[None]
    mixed = torch.stack([0 * a, a, 0 * a], 1)[None]
    assert worth("cca", sums_of("stream_moments", stream=x, update=mixed)) < 1e-6
    new = torch.stack([0 * a, c - b, 0 * a], 1)[None]
    assert worth("cca", sums_of("stream_moments", stream=x, update=new)) == pytest.approx(1)
