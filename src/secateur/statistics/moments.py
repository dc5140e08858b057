"""Means and covariances in fp64 from the running sums of a pass.

Legend: U units x, K targets y that are known beside them, D dims of each target.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.statistics.registry import Sums

ROUNDING = 1e-5
"""Variance relative to the second moment below which a unit is constant: the rounding of fp32 sums.

A sum of T terms is off by up to T ulps (6e-8), by a few √T as a rule; processors differ in it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean (U,) and covariance (U, U) of x over `count` weighted tokens, fp64.

    With targets, also their means `mean_KD` (K, D), and the covariance of x with each, `cross_KUD`
    (K, U, D).
    """

    mean_U: Tensor
    cov_UU: Tensor
    count: float
    mean_KD: Tensor | None = None
    cross_KUD: Tensor | None = None

    @property
    def cross_UD(self) -> Tensor:
        """The covariance of x with the one target."""
        assert self.cross_KUD is not None and len(self.cross_KUD) == 1
        return self.cross_KUD[0]


def moments(sums: Sums, of: str = "", *, centred: bool = True) -> Moments:
    """Moments of x from `count`, `sum` (U,) and `gram` (U, U).

    Targets are taken from `target_sum` (K, D) and `target_cross` (K, U, D), where there are such.
    `of` stands before the names of the sums of x. Without `centred`, means count as zero and
    covariances are second moments, as a map without a constant needs them.

    A unit whose variance is no more than the rounding of its sum has none, so that it predicts
    nothing.
    """
    # WHY: in place, since these matrices are what memory is needed for.
    count = float(sums["count"])
    cov_UU = sums[f"{of}gram"].to(torch.float64, copy=True).div_(count)
    square_U = cov_UU.diagonal().clone()
    mean_U = sums[f"{of}sum"].double() / count if centred else torch.zeros_like(square_U)
    cov_UU.addr_(mean_U, mean_U, alpha=-1)
    mean_KD, cross_KUD = _targets(sums, mean_U, count, centred)
    varies_U = cov_UU.diagonal() > ROUNDING * square_U
    if not bool(varies_U.all()):
        cov_UU.mul_(varies_U).mul_(varies_U[:, None])
        if cross_KUD is not None:
            cross_KUD.mul_(varies_U[:, None])
    return Moments(
        mean_U=mean_U,
        cov_UU=(cov_UU + cov_UU.T).div_(2),
        count=count,
        mean_KD=mean_KD,
        cross_KUD=cross_KUD,
    )


def variances(sums: Sums) -> Moments:
    """Moments of units that count as uncorrelated, from `count`, `sum` (U,) and `square` (U,)."""
    count = float(sums["count"])
    mean_U = sums["sum"].double() / count
    variance_U = sums["square"].double() / count - mean_U.square()
    return Moments(mean_U=mean_U, cov_UU=torch.diag(variance_U), count=count)


def joint_moments(sums: Sums) -> Moments:
    """Moments of x with the one target y, from the sums of `secateur.statistics.kinds.updates`."""
    targets = {"target_sum": sums["y_sum"][None], "target_cross": sums["xy_gram"][None]}
    return moments(sums | targets, "x_")


def merged(a: Moments, b: Moments) -> Moments:
    """Moments over the union of two sets of tokens, with the same targets."""
    count = a.count + b.count
    p, q = a.count / count, b.count / count
    step_U = a.mean_U - b.mean_U
    # WHY: in place, since these matrices are what memory is needed for.
    mean_KD = cross_KUD = None
    if a.mean_KD is not None and b.mean_KD is not None:
        assert a.cross_KUD is not None and b.cross_KUD is not None
        mean_KD = p * a.mean_KD + q * b.mean_KD
        cross_KUD = (p * a.cross_KUD).add_(b.cross_KUD, alpha=q)
        for cross_UD, step_D in zip(cross_KUD, a.mean_KD - b.mean_KD, strict=True):
            cross_UD.addr_(step_U, step_D, alpha=p * q)
    return Moments(
        mean_U=p * a.mean_U + q * b.mean_U,
        cov_UU=(p * a.cov_UU).add_(b.cov_UU, alpha=q).addr_(step_U, step_U, alpha=p * q),
        count=count,
        mean_KD=mean_KD,
        cross_KUD=cross_KUD,
    )


def _targets(
    sums: Sums, mean_U: Tensor, count: float, centred: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Means (K, D) of the targets and their covariances with x (K, U, D)."""
    if "target_cross" not in sums:
        return None, None
    cross_KUD = sums["target_cross"].to(torch.float64, copy=True).div_(count)
    if not centred:
        return cross_KUD.new_zeros(cross_KUD.shape[0], cross_KUD.shape[2]), cross_KUD
    mean_KD = sums["target_sum"].double() / count
    for cross_UD, mean_D in zip(cross_KUD, mean_KD, strict=True):
        cross_UD.addr_(mean_U, mean_D, alpha=-1)
    return mean_KD, cross_KUD
