import pytest
import torch

from secateur.errors import UserError
from secateur.statistics import Sums
from secateur.statistics.kinds.moments import add_moments_
from secateur.surgery.moments import RIDGE, iterated_solve, moments, ridge_solve


def gram(rows: int, units: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed)).double()
    return x.T @ x / rows


def test_moments_are_mean_and_covariance() -> None:
    x_TU = torch.randn(50, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 1.5
    sums: Sums = {}
    add_moments_(sums, x_TU[:30][None])
    add_moments_(sums, x_TU[30:][None])
    known = moments(sums)
    assert known.count == 50 and known.cov_UU.dtype == torch.float64
    torch.testing.assert_close(known.mean_U, x_TU.double().mean(0), rtol=1e-5, atol=1e-5)
    expected = torch.cov(x_TU.double().T, correction=0)
    torch.testing.assert_close(known.cov_UU, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        known.gram_UU, x_TU.double().T @ x_TU.double() / 50, rtol=1e-5, atol=1e-4
    )
    assert torch.equal(known.cov_UU, known.cov_UU.T)


def test_the_ridge_is_relative_to_the_mean_of_the_diagonal() -> None:
    g, r = gram(50, 5), torch.randn(5, 3).double()
    level = 0.1 * float(g.diagonal().mean())
    expected = torch.linalg.solve(g + level * torch.eye(5), r)
    torch.testing.assert_close(ridge_solve(g, r, 0.1, "x"), expected)
    torch.testing.assert_close(ridge_solve(7 * g, 7 * r, 0.1, "x"), expected)


def test_one_more_step_squares_the_bias_of_the_ridge() -> None:
    values = torch.tensor([2.0, 1.0, 0.5]).double()
    g, r = torch.diag(values), torch.eye(3).double()
    shrunk = 0.2 * float(values.mean()) / (values + 0.2 * float(values.mean()))
    bias = torch.eye(3) - g @ ridge_solve(g, r, 0.2, "x")
    torch.testing.assert_close(bias.diagonal(), shrunk)
    bias = torch.eye(3) - g @ iterated_solve(g, r, 0.2, "x")
    torch.testing.assert_close(bias.diagonal(), shrunk.square())


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_solutions_are_finite_with_fewer_tokens_than_units(rows: int) -> None:
    g = gram(rows, 12)
    solved = ridge_solve(g, g, RIDGE, "x")
    assert bool(torch.isfinite(solved).all())
    assert float(solved.abs().max()) < 10
    torch.testing.assert_close(g @ solved, g, rtol=0, atol=1e-3 * float(g.diagonal().mean()))


@pytest.mark.parametrize("ridge", [0.0, RIDGE])
def test_dead_units_are_no_obstacle(ridge: float) -> None:
    g = torch.zeros(4, 4).double()
    assert torch.equal(ridge_solve(g, torch.zeros(4, 2).double(), ridge, "x"), torch.zeros(4, 2))


def test_duplicates_without_a_ridge_share_the_weight() -> None:
    g = torch.ones(2, 2).double()
    torch.testing.assert_close(
        ridge_solve(g, g[:, :1], 0.0, "x")[:, 0], torch.full((2,), 0.5).double()
    )


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    g = torch.eye(2).double()
    g[0, 1] = float("nan")
    with pytest.raises(UserError, match=r"blocks\.3\.mlp: .* not finite"):
        ridge_solve(g, g, RIDGE, "blocks.3.mlp")


def test_a_constant_unit_has_no_covariance_left_by_rounding() -> None:
    torch.manual_seed(0)
    x_TU = torch.randn(1000, 3)
    x_TU[:, 2] = 7.3
    sums: Sums = {}
    add_moments_(sums, x_TU[None], None)
    sums["gram"][:, 2] *= 1 + 2e-7
    found = moments(sums)
    assert not found.cov_UU[2].any() and not found.cov_UU[:, 2].any()
    expected = torch.cov(x_TU[:, :2].double().T, correction=0)
    torch.testing.assert_close(found.cov_UU[:2, :2], expected, rtol=1e-5, atol=1e-5)
    assert float(found.mean_U[2]) == pytest.approx(7.3, rel=1e-6)
