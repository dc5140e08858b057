"""Moments in fp64 from the sums of a pass, and the ridge that keeps solves finite.

Legend: U units that a writer reads (hidden neurons, or all context dims of all heads).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics import Sums

RIDGE = 1e-5
"""Ridge relative to the mean of the covariance's diagonal."""

ROUNDING = 1e-5
"""Variance relative to the second moment below which a unit is constant: the rounding of fp32 sums.

A sum of T terms is off by up to T ulps (6e-8), by a few √T as a rule; processors differ in it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean (U,) and covariance (U, U) in fp64 over `count` tokens."""

    mean_U: Tensor
    cov_UU: Tensor
    count: float

    @property
    def gram_UU(self) -> Tensor:
        """Uncentred second moment E[x x^T]."""
        return self.cov_UU + torch.outer(self.mean_U, self.mean_U)


def moments(sums: Sums) -> Moments:
    """Moments from `count`, `sum` and `gram`."""
    count = float(sums["count"])
    mean_U = sums["sum"].double() / count
    gram_UU = sums["gram"].double() / count
    cov_UU = gram_UU - torch.outer(mean_U, mean_U)
    # WHY: what is left of a constant unit is the rounding of its fp32 sum, which predicts nothing.
    varies_U = cov_UU.diagonal() > ROUNDING * gram_UU.diagonal()
    cov_UU = cov_UU * varies_U * varies_U[:, None]
    return Moments(mean_U=mean_U, cov_UU=(cov_UU + cov_UU.T) / 2, count=count)


def ridge_solve(gram_SS: Tensor, right_ST: Tensor, relative: float, owner: str) -> Tensor:
    """Solve (G + r * mean(diag G) I) X = R in fp64; UserError if G is not finite.

    Falls back to the pseudo-inverse where G is singular beyond what the ridge mends, so that
    exactly duplicated units are no obstacle.
    """
    if not bool(torch.isfinite(gram_SS).all()):
        raise UserError(
            f"{owner}: the calibration images give values that are not finite; check the "
            "preprocessing and the weights."
        )
    level = relative * float(gram_SS.diagonal().mean())
    damped_SS = gram_SS.clone()
    damped_SS.diagonal().add_(level)
    factor, failed = torch.linalg.cholesky_ex(damped_SS)
    del damped_SS
    if int(failed) == 0:
        solved_ST: Tensor = torch.cholesky_solve(right_ST, factor)
        return solved_ST
    inverse_SS: Tensor = torch.linalg.pinv(gram_SS, hermitian=True)
    return inverse_SS @ right_ST


def iterated_solve(gram_SS: Tensor, right_ST: Tensor, relative: float, owner: str) -> Tensor:
    """`ridge_solve` and one more step on what it leaves (iterated Tikhonov).

    The step squares the bias of the ridge, so that exactly redundant units are predicted exactly.
    """
    first_ST = ridge_solve(gram_SS, right_ST, relative, owner)
    return first_ST + ridge_solve(gram_SS, right_ST - gram_SS @ first_ST, relative, owner)
