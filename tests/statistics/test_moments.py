"""Means and covariances from sums, against those of the rows themselves."""

import pytest
import torch
from torch import Tensor

from secateur.statistics import Sums
from secateur.statistics.kinds.moments import add_energies_, add_moments_
from secateur.statistics.kinds.updates import add_joint_moments_
from secateur.statistics.moments import Moments, joint_moments, merged, moments, variances


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
    gram_UU = x_TU.double().T @ x_TU.double() / 50
    uncentred = moments(sums, centred=False)
    torch.testing.assert_close(uncentred.cov_UU, gram_UU, rtol=1e-5, atol=1e-4)
    assert not uncentred.mean_U.any()
    assert torch.equal(known.cov_UU, known.cov_UU.T)


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


def test_a_constant_unit_predicts_no_target() -> None:
    torch.manual_seed(1)
    x_TD, y_TD = torch.randn(1000, 3), torch.randn(1000, 3)
    x_TD[:, 2] = 7.3
    sums: Sums = {}
    add_joint_moments_(sums, x_TD[None], y_TD[None])
    sums["xy_gram"][2] *= 1 + 2e-7
    found = joint_moments(sums)
    assert found.mean_KD is not None
    assert not found.cov_UU[2].any() and not found.cross_UD[2].any()
    centred_TD = (x_TD - x_TD.mean(0)).double()
    expected = centred_TD.T @ (y_TD - y_TD.mean(0)).double() / 1000
    torch.testing.assert_close(found.cross_UD[:2], expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_KD[0], y_TD.double().mean(0), rtol=1e-5, atol=1e-6)
    of_y = moments(sums, "y_")
    torch.testing.assert_close(
        of_y.cov_UU, torch.cov(y_TD.double().T, correction=0), rtol=1e-4, atol=1e-5
    )


def test_two_sets_together_have_the_moments_of_all_rows() -> None:
    torch.manual_seed(2)
    x_TD, y_TD = torch.randn(90, 4) + 1, torch.randn(90, 4)

    def known(rows: slice) -> Moments:
        sums: Sums = {}
        add_joint_moments_(sums, x_TD[rows][None], y_TD[rows][None])
        return joint_moments(sums)

    found, whole = merged(known(slice(60)), known(slice(60, 90))), known(slice(None))
    assert found.count == whole.count and found.mean_KD is not None and whole.mean_KD is not None
    for one, other in (
        (found.mean_U, whole.mean_U),
        (found.cov_UU, whole.cov_UU),
        (found.mean_KD, whole.mean_KD),
        (found.cross_UD, whole.cross_UD),
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_variances_are_the_diagonal_of_the_covariance() -> None:
    torch.manual_seed(3)
    x_TU: Tensor = torch.randn(50, 4) + 2
    sums: Sums = {}
    add_energies_(sums, x_TU)
    found = variances(sums)
    expected = torch.cov(x_TU.double().T, correction=0).diagonal().diag()
    torch.testing.assert_close(found.cov_UU, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean_U, x_TU.double().mean(0), rtol=1e-5, atol=1e-6)
