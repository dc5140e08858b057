"""Elimination: its curve is the true least-squares error, and free units go first."""

import pytest
import torch

from secateur.criteria.elimination import damped_inverse, eliminate, eliminate_heads


def problem(units: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(units, units, generator=generator, dtype=torch.float64)
    x = torch.randn(400, units, generator=generator, dtype=torch.float64) @ mix
    weights = torch.randn(5, units, generator=generator, dtype=torch.float64)
    return torch.cov(x.T, correction=0), weights


def least_squares_error(cov: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor) -> float:
    """tr W (C - C_S C_SS^-1 C_S^T) W^T: the error of the best writer of the kept units."""
    cross = cov[:, kept]
    rest = cov - cross @ torch.linalg.solve(cov[kept][:, kept], cross.T)
    return float(torch.einsum("du,uv,dv->", weights, rest, weights))


def test_the_curve_is_the_error_of_the_best_refit_when_units_go_one_at_a_time() -> None:
    cov, weights = problem()
    done = eliminate(cov, weights, ridge=1e-12, steps=10_000)
    for size in range(1, 12):
        expected = least_squares_error(cov, weights, done.kept(size))
        assert float(done.errors[size]) == pytest.approx(expected, rel=1e-5)
    assert float(done.errors[12]) == 0.0
    assert sorted(done.order.tolist()) == list(range(12))


def test_the_curve_is_monotone_in_blocks() -> None:
    cov, weights = problem(units=60, seed=1)
    errors = eliminate(cov, weights, ridge=1e-6, steps=8).errors
    assert bool((errors[:-1] >= errors[1:] - 1e-9).all())


def test_constant_and_duplicated_units_go_first_and_cost_nothing() -> None:
    cov, weights = problem(seed=2)
    cov, weights = cov.clone(), weights.clone()
    cov[3], cov[:, 3] = 0.0, 0.0
    cov[7], cov[:, 7] = cov[1], cov[:, 1]
    cov[7, 7] = cov[1, 1]
    done = eliminate(cov, weights, ridge=1e-9, steps=10_000)
    assert set(done.order[:2].tolist()) <= {1, 3, 7}
    assert float(done.errors[10]) < 1e-6 * float(done.errors[6])


def test_constant_inputs_alone_stay_finite() -> None:
    done = eliminate(torch.zeros(4, 4), torch.ones(2, 4), ridge=1e-4)
    assert bool(torch.isfinite(done.errors).all())
    assert float(done.errors[0]) == pytest.approx(0.0, abs=1e-12)


def test_heads_are_eliminated_as_blocks_with_their_true_error() -> None:
    cov, weights = problem(seed=4)
    done = eliminate_heads(cov, weights, heads=4, ridge=1e-12)
    for size in (1, 2, 3):
        kept = (done.kept(size)[:, None] * 3 + torch.arange(3)).flatten()
        expected = least_squares_error(cov, weights, kept)
        assert float(done.errors[size]) == pytest.approx(expected, rel=1e-5)


def test_the_inverse_of_what_rounding_made_indefinite() -> None:
    cov = torch.diag(torch.tensor([1.0, 0.5, -1e-3]).double())
    assert int(torch.linalg.cholesky_ex(cov)[1]) != 0
    expected = (cov + 1e-6 * cov.diagonal().mean() * torch.eye(3)).inverse()
    torch.testing.assert_close(damped_inverse(cov, 1e-6), expected)


def test_units_are_compacted_without_changing_the_order() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 40, generator=generator).double()
    cov, w = x.T @ x / 400, torch.randn(6, 40, generator=generator).double()
    done = eliminate(cov, w, ridge=1e-9, steps=10_000)
    for size in (35, 20, 5):
        kept = done.kept(size)
        gone = torch.tensor([j for j in range(40) if j not in set(kept.tolist())])
        inner = cov[kept][:, kept] + 1e-9 * cov.diagonal().mean() * torch.eye(size)
        lost = cov[gone][:, gone] - cov[gone][:, kept] @ inner.inverse() @ cov[kept][:, gone]
        assert float(done.errors[size]) == pytest.approx(
            float(torch.einsum("du,uv,dv->", w[:, gone], lost, w[:, gone])), rel=1e-4
        )
