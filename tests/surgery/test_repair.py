"""The closed forms against least squares on raw activations."""

import pytest
import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.moments import Moments
from secateur.surgery.repair import REPAIRS, Repair, repaired_writer


def problem(tokens: int = 200, units: int = 10, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated units with means (T, U), a writer (D, U) and its bias (D,), fp64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    x_TU = draw(tokens, units) @ (torch.eye(units) + 0.5 * draw(units, units)) + draw(units)
    return x_TU, draw(6, units), draw(6)


def known(x_TU: Tensor) -> Moments:
    cov_UU = torch.cov(x_TU.T, correction=0)
    return Moments(mean_U=x_TU.mean(0), cov_UU=cov_UU, count=len(x_TU))


def error(x_TU: Tensor, w_DU: Tensor, b_D: Tensor, kept: Tensor, repair: Repair) -> float:
    w_DS, c_D = repaired_writer(w_DU, b_D, kept, known(x_TU), repair, "x")
    assert c_D is not None
    return float((x_TU @ w_DU.T + b_D - x_TU[:, kept] @ w_DS.T - c_D).square().mean())


KEPT = torch.tensor([0, 3, 4, 8])


def test_none_slices_and_leaves_the_bias() -> None:
    x_TU, w_DU, b_D = problem()
    w_DS, c_D = repaired_writer(w_DU, b_D, KEPT, known(x_TU), "none", "x")
    assert torch.equal(w_DS, w_DU[:, KEPT])
    assert c_D is not None and torch.equal(c_D, b_D)


def test_mean_adds_the_constants_of_removed_units() -> None:
    x_TU, w_DU, b_D = problem()
    w_DS, c_D = repaired_writer(w_DU, b_D, KEPT, known(x_TU), "mean", "x")
    gone = [1, 2, 5, 6, 7, 9]
    assert torch.equal(w_DS, w_DU[:, KEPT])
    torch.testing.assert_close(c_D, b_D + w_DU[:, gone] @ x_TU[:, gone].mean(0))


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_is_the_regression_on_raw_activations(seed: int) -> None:
    x_TU, w_DU, b_D = problem(seed=seed)
    w_DS, c_D = repaired_writer(w_DU, b_D, KEPT, known(x_TU), "least_squares", "x", ridge=1e-9)
    ones = torch.ones(len(x_TU), 1, dtype=torch.float64)
    inputs = torch.cat([x_TU[:, KEPT], ones], 1)
    direct = torch.linalg.lstsq(inputs, x_TU @ w_DU.T + b_D).solution
    torch.testing.assert_close(w_DS, direct[:-1].T, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(c_D, direct[-1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_each_repair_is_at_least_as_good_as_the_one_before(seed: int) -> None:
    x_TU, w_DU, b_D = problem(seed=seed)
    for size in (1, 4, 9):
        kept = torch.randperm(10)[:size].sort().values
        errors = [
            error(x_TU, w_DU, b_D, kept, repair) for repair in ("none", "mean", "least_squares")
        ]
        assert errors[0] >= errors[1] >= errors[2]
        assert errors[0] > errors[2]


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_solutions_are_finite_with_fewer_tokens_than_units(tokens: int) -> None:
    x_TU, w_DU, b_D = problem(tokens=tokens)
    w_DS, c_D = repaired_writer(w_DU, b_D, KEPT, known(x_TU), "least_squares", "x")
    assert c_D is not None
    assert bool(torch.isfinite(w_DS).all()) and bool(torch.isfinite(c_D).all())
    assert error(x_TU, w_DU, b_D, KEPT, "least_squares") <= error(x_TU, w_DU, b_D, KEPT, "mean")


@pytest.mark.parametrize("repair", ["mean", "least_squares"])
def test_a_bias_appears_where_there_is_none(repair: Repair) -> None:
    x_TU, w_DU, _ = problem()
    _, with_bias = repaired_writer(w_DU, torch.zeros(6), KEPT, known(x_TU), repair, "x")
    _, without = repaired_writer(w_DU, None, KEPT, known(x_TU), repair, "x")
    torch.testing.assert_close(without, with_bias)
    assert repaired_writer(w_DU, None, KEPT, known(x_TU), "none", "x")[1] is None


@pytest.mark.parametrize("repair", REPAIRS)
def test_keeping_all_changes_nothing(repair: Repair) -> None:
    _, w_DU, b_D = problem()
    w_DS, c_D = repaired_writer(w_DU, b_D, torch.arange(10), None, repair, "x")
    assert torch.equal(w_DS, w_DU) and c_D is not None and torch.equal(c_D, b_D)


def test_repairs_without_evidence_are_refused_by_name() -> None:
    _, w_DU, b_D = problem()
    with pytest.raises(UserError, match=r"blocks\.0\.mlp: repair 'mean' needs evidence"):
        repaired_writer(w_DU, b_D, KEPT, None, "mean", "blocks.0.mlp")
