import pytest
import torch

from secateur.errors import UserError
from secateur.statistics import Sums, statistics_kinds
from secateur.statistics.registry import add_, chosen_kinds


def test_kinds_that_another_covers_are_not_collected() -> None:
    names = [kind.name for kind in chosen_kinds(["hidden_energies", "hidden_moments"])]
    assert names == ["hidden_moments"]
    names = [kind.name for kind in chosen_kinds(["update_mean", "branch_similarity"])]
    assert names == ["branch_similarity"]
    names = [kind.name for kind in chosen_kinds(["update_mean", "hidden_energies", "update_mean"])]
    assert names == ["hidden_energies", "update_mean"]


def test_what_is_covered_exists() -> None:
    for _, kind in statistics_kinds.items():
        assert set(kind.covers) <= set(statistics_kinds.names())


def test_unknown_kinds_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'hidden_moments'"):
        chosen_kinds(["hidden_moment"])


def test_sums_begin_as_copies_and_grow_in_single_precision() -> None:
    sums: Sums = {}
    value = torch.ones(3, dtype=torch.bfloat16)
    add_(sums, "a", value)
    add_(sums, "a", value)
    assert sums["a"].dtype == torch.float32 and sums["a"].tolist() == [2, 2, 2]
    value = torch.ones(2)
    add_(sums, "b", value)
    add_(sums, "b", value)
    assert value.tolist() == [1, 1] and sums["b"].tolist() == [2, 2]
