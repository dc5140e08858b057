"""Ridge regression against plain least squares on raw rows, and choices by the held-out error."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.moments import Moments
from secateur.surgery.reduce import RefitSettings, refit
from secateur.surgery.solve import RIDGE, Choice, choose, encoded, least_squares, ridge_solve


def gram(rows: int, units: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed)).double()
    return x.T @ x / rows


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
    bias = torch.eye(3) - g @ ridge_solve(g, r, 0.2, "x", steps=2)
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


U, D = 10, 4


def data(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Moments]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, U, generator=generator, dtype=torch.float64) + 0.5
    local = 0.2 * torch.randn(rows, D, generator=generator, dtype=torch.float64)
    lack = 0.4 * x[:, :D] + local
    mean = x.mean(0)
    deltas = torch.stack([local, lack])
    means = deltas.mean(1)
    cross = (x - mean).T @ (deltas - means[:, None]) / rows
    cov = torch.cov(x.T, correction=0)
    joint = Moments(mean_U=mean, cov_UU=cov, mean_KD=means, cross_KUD=cross, count=float(rows))
    return x, local, lack, joint


@pytest.fixture
def writer() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return (
        torch.randn(D, U, generator=generator, dtype=torch.float64),
        torch.randn(D, generator=generator, dtype=torch.float64),
    )


ENCODES = [
    torch.arange(0, U, 2),
    torch.randn(U, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64),
]


@pytest.mark.parametrize("encode", ENCODES, ids=["selected", "rotated"])
@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_equals_least_squares_on_the_rows(
    writer: tuple[Tensor, Tensor], encode: Tensor, blend: float
) -> None:
    weights, bias = writer
    x1, local1, lack1, first = data(300, seed=1)
    x2, local2, lack2, second = data(100, seed=2)
    tiny = (1e-12,)
    settings = RefitSettings(ridges=tiny, lack_ridges=tiny, blend=blend)
    done = refit(weights, bias, encode, first, second, settings, "x")
    x, local, lack = torch.cat([x1, x2]), torch.cat([local1, local2]), torch.cat([lack1, lack2])
    z = x[:, encode] if encode.dtype == torch.long else x @ encode
    target = x @ weights.T + bias + (1 - blend) * local + blend * lack
    rows = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(rows, target).solution
    torch.testing.assert_close(done.w_DS, expected[:-1].T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(done.b_D, expected[-1], rtol=1e-6, atol=1e-6)


def test_the_reported_error_is_the_true_one_on_held_out_rows(
    writer: tuple[Tensor, Tensor],
) -> None:
    weights, bias = writer
    _, _, _, fit = data(60, seed=3)
    x, _, lack, held = data(80, seed=4)
    encode = ENCODES[0]
    chosen = refit(weights, bias, encode, fit, held, RefitSettings(), "x")
    choice = chosen.choice
    settings = RefitSettings(
        ridges=(choice.ridge,), lack_ridges=(choice.lack_ridge,), blend=choice.blend
    )
    alone = refit(weights, bias, encode, fit, None, settings, "x")
    miss = x @ weights.T + bias + lack - x[:, encode] @ alone.w_DS.T - alone.b_D
    target = x @ weights.T + lack
    constant = (target - target.mean(0)).square().sum(1).mean()
    assert choice.held_error == pytest.approx(
        float(miss.square().sum(1).mean() - constant), rel=1e-6
    )
    assert choice.blend == 1.0  # the lack is predictable from x here, so correcting it pays


def test_keeping_everything_without_corrections_changes_nothing(
    writer: tuple[Tensor, Tensor],
) -> None:
    weights, bias = writer
    _, _, _, joint = data(200, seed=5)
    plain = Moments(mean_U=joint.mean_U, cov_UU=joint.cov_UU, count=joint.count)
    zeros = replace(
        joint,
        mean_KD=torch.zeros(2, D, dtype=torch.float64),
        cross_KUD=torch.zeros(2, U, D, dtype=torch.float64),
    )
    for known in (plain, zeros):
        for encode in (None, torch.arange(U)):
            done = refit(weights, bias, encode, known, None, RefitSettings(ridges=(1e-12,)), "x")
            torch.testing.assert_close(done.w_DS, weights, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(done.b_D, bias, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
@pytest.mark.parametrize("prior", [False, True])
def test_the_ridge_pulls_towards_the_prior(ridge: float, prior: bool) -> None:
    """Against least squares on rows to which the penalty is appended."""
    x, local, _, known = data(50, seed=6)
    assert known.mean_KD is not None and known.cross_KUD is not None
    known = replace(known, mean_KD=known.mean_KD[:1], cross_KUD=known.cross_KUD[:1])
    held_at = torch.ones(D, U, dtype=torch.float64) if prior else None
    done = least_squares(known, "x", Choice(ridge=ridge), prior_DS=held_at)
    root = (ridge * known.cov_UU.diagonal().mean() * len(x)).sqrt()
    rows = torch.cat([x - x.mean(0), root * torch.eye(U, dtype=torch.float64)])
    pull = root * (torch.zeros(U, D).double() if held_at is None else held_at.T)
    expected = torch.linalg.lstsq(rows, torch.cat([local - local.mean(0), pull])).solution
    torch.testing.assert_close(done.w_DS, expected.T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(done.b_D, local.mean(0) - expected.T @ x.mean(0))


@pytest.mark.parametrize("encode", [*ENCODES, None], ids=["selected", "rotated", "all"])
def test_encoded_moments_are_those_of_encoded_rows(
    writer: tuple[Tensor, Tensor], encode: Tensor | None
) -> None:
    x, local, lack, known = data(70, seed=7)
    found = encoded(known, encode, writer[0])
    z = x if encode is None else x[:, encode] if encode.dtype == torch.long else x @ encode
    targets = torch.stack([x @ writer[0].T + local, lack - local])
    assert found.mean_KD is not None and found.cross_KUD is not None
    torch.testing.assert_close(found.mean_U, z.mean(0))
    torch.testing.assert_close(found.cov_UU, torch.cov(z.T, correction=0))
    torch.testing.assert_close(found.mean_KD, targets.mean(1))
    cross = (z - z.mean(0)).T @ (targets - targets.mean(1, keepdim=True)) / len(x)
    torch.testing.assert_close(found.cross_KUD, cross)


def test_one_target_leaves_nothing_to_blend() -> None:
    _, _, _, fit = data(40, seed=8)
    _, _, _, held = data(40, seed=9)
    alone = [replace(m, mean_KD=m.mean_KD[:1], cross_KUD=m.cross_KUD[:1]) for m in (fit, held)]
    done = choose(*alone, "x", (1e-3, 1.0))
    assert done.blend == 0.0
    others = [least_squares(alone[0], "x", Choice(ridge=ridge)) for ridge in (1e-3, 1.0)]
    off = [_error(alone[1], other.w_DS, other.b_D) for other in others]
    assert done.ridge == (1e-3, 1.0)[off.index(min(off))]
    assert done.held_error == pytest.approx(min(off), rel=1e-9)


def _error(known: Moments, w_DU: Tensor, b_D: Tensor) -> float:
    """E|y - W x - b|^2 less the variance of y."""
    miss_D = known.mean_KD[0] - w_DU @ known.mean_U - b_D
    square = (w_DU @ known.cov_UU * w_DU).sum() - 2 * (w_DU * known.cross_KUD[0].T).sum()
    return float(square + miss_D.square().sum())
