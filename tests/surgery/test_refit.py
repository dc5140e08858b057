"""The refit equals plain least squares on raw rows, and chooses by the true held-out error."""

import pytest
import torch
from torch import Tensor

from secateur.surgery.refit import Joint, refit

U, D = 10, 4


def data(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Joint]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, U, generator=generator, dtype=torch.float64) + 0.5
    local = 0.2 * torch.randn(rows, D, generator=generator, dtype=torch.float64)
    lack = 0.4 * x[:, :D] + local
    mean = x.mean(0)
    deltas = torch.stack([local, lack])
    means = deltas.mean(1)
    cross = (x - mean).T @ (deltas - means[:, None]) / rows
    cov = torch.cov(x.T, correction=0)
    joint = Joint(mean_U=mean, cov_UU=cov, mean_2D=means, cross_2UD=cross, count=float(rows))
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
    done = refit(weights, bias, encode, first, second, ridges=tiny, lack_ridges=tiny, blend=blend)
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
    chosen = refit(weights, bias, encode, fit, held)
    alone = refit(
        weights,
        bias,
        encode,
        fit,
        None,
        ridges=(chosen.ridge,),
        lack_ridges=(chosen.lack_ridge,),
        blend=chosen.blend,
    )
    miss = x @ weights.T + bias + lack - x[:, encode] @ alone.w_DS.T - alone.b_D
    constant = (lack - lack.mean(0)).square().sum(1).mean()
    assert chosen.held_error == pytest.approx(
        float(miss.square().sum(1).mean() - constant), rel=1e-6
    )
    assert chosen.blend == 1.0  # the lack is predictable from x here, so correcting it pays


def test_keeping_everything_without_corrections_changes_nothing(
    writer: tuple[Tensor, Tensor],
) -> None:
    weights, bias = writer
    _, _, _, joint = data(200, seed=5)
    zero = Joint(
        mean_U=joint.mean_U,
        cov_UU=joint.cov_UU,
        mean_2D=torch.zeros(2, D, dtype=torch.float64),
        cross_2UD=torch.zeros(2, U, D, dtype=torch.float64),
        count=joint.count,
    )
    done = refit(weights, bias, torch.arange(U), zero, None, ridges=(1e-12,))
    torch.testing.assert_close(done.w_DS, weights, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(done.b_D, bias, rtol=1e-8, atol=1e-8)
