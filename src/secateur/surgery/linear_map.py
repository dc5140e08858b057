"""The linear layer that guesses best what a run of dropped branches would add to the stream.

    A = C_yx (C_xx + r I)^-1,    c = mean y - A mean x

the linear minimum mean squared error estimate, with x what the first of them reads behind its norm
and y the sum of their updates: NBL (NeurIPS 2025, arXiv 2505.21077) for one attention layer, in the
manner of TOAST (which maps the stream before a window of blocks to that behind it) for more. The
ridge r is chosen on images held out, then all images are fitted.

Legend: D residual width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.statistics import Sums
from secateur.statistics.gaps import HELD
from secateur.surgery.moments import ridge_solve

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates, relative to the mean of the diagonal of C_xx."""
WITHOUT = 1e-3
"""The ridge where too few images were given to hold any out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joint:
    """Means (D,) and covariances (D, D) of x and y, fp64; of y only the total variance."""

    x_D: Tensor
    y_D: Tensor
    cov_xx: Tensor
    cov_xy: Tensor
    variance: float


def linear_map(sums: Sums, owner: str) -> tuple[Tensor, Tensor]:
    """A (D, D) and c (D,), fp64, from the sums of `secateur.statistics.gaps` for one gap."""
    fit = {name: value for name, value in sums.items() if not name.startswith(HELD)}
    held = {name.removeprefix(HELD): sums[name] for name in sums if name.startswith(HELD)}
    if not held or not fit:
        return _solved(_joint(fit or held), WITHOUT, owner)
    known, judge = _joint(fit), _joint(held)
    errors = [_error(judge, *_solved(known, ridge, owner)) for ridge in RIDGES]
    best = RIDGES[errors.index(min(errors))]
    return _solved(_joint({name: fit[name] + held[name] for name in fit}), best, owner)


def _solved(joint: _Joint, ridge: float, owner: str) -> tuple[Tensor, Tensor]:
    map_DD = ridge_solve(joint.cov_xx, joint.cov_xy, ridge, owner).T
    return map_DD, joint.y_D - map_DD @ joint.x_D


def _error(joint: _Joint, map_DD: Tensor, constant_D: Tensor) -> float:
    """E|y - A x - c|^2."""
    off_D = joint.y_D - map_DD @ joint.x_D - constant_D
    linear = torch.einsum("ij,ji->", map_DD, joint.cov_xy)
    square = torch.einsum("ij,jk,ik->", map_DD, joint.cov_xx, map_DD)
    return joint.variance - 2 * float(linear) + float(square) + float(off_D.square().sum())


def _joint(sums: Sums) -> _Joint:
    count = sums["count"]
    x_D, y_D = sums["x_sum"] / count, sums["y_sum"] / count
    cov_xx = sums["x_gram"].double() / count - torch.outer(x_D, x_D)
    return _Joint(
        x_D=x_D,
        y_D=y_D,
        cov_xx=(cov_xx + cov_xx.T) / 2,
        cov_xy=sums["xy_gram"].double() / count - torch.outer(x_D, y_D),
        variance=float((sums["y_gram"].diagonal() / count - y_D.square()).sum()),
    )
