"""Refit of a writer on what is left of its inputs, towards a blend of two targets.

Inputs x (U) become z = E^T x (S), by selection or rotation. The local target is what the layer's
own dense weights give on the same input, y = W x + b; the stream target is y + delta, where delta
is what the residual stream lacks against the dense model's, so that later layers correct earlier
ones. All solutions come from one set of moments:

    A_b = argmin E||W x + b + beta * delta - A z - a||^2 + ridge ||A - A_0||^2

beta and the ridge are chosen by the error against the stream target on held-out images.
Legend: D residual width, U inputs before, S inputs kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.evidence import Sums
from secateur.surgery.moments import ridge_solve

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Moments of inputs x and stream lack delta over weighted tokens, fp64.

    `mean_U`, `cov_UU` of x; `lack_D` the mean of delta and `cross_UD` its covariance with x.
    """

    mean_U: Tensor
    cov_UU: Tensor
    lack_D: Tensor
    cross_UD: Tensor
    count: float


def joint_moments(sums: Sums) -> Joint:
    """Joint moments from `count`, `sum`, `gram`, `lack_sum` and `lack_cross`."""
    count = float(sums["count"])
    mean_U = sums["sum"].double() / count
    cov_UU = sums["gram"].double() / count - torch.outer(mean_U, mean_U)
    lack_D = sums["lack_sum"].double() / count
    cross_UD = sums["lack_cross"].double() / count - torch.outer(mean_U, lack_D)
    return Joint(
        mean_U=mean_U, cov_UU=(cov_UU + cov_UU.T) / 2, lack_D=lack_D, cross_UD=cross_UD, count=count
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """A refitted writer (D, S) and bias (D,), with the blend and ridge that were chosen."""

    w_DS: Tensor
    b_D: Tensor
    blend: float
    ridge: float
    held_error: float


def refit(
    w_DU: Tensor,
    b_D: Tensor | None,
    encode_US: Tensor,
    fit: Joint,
    held: Joint | None,
    *,
    ridges: tuple[float, ...] = RIDGES,
    blends: tuple[float, ...] = BLENDS,
    owner: str = "",
) -> Refit:
    """The best writer of z = E^T x; chosen on `held`, then solved on both sets together.

    Without `held`, the first ridge and blend are used. Errors are measured against the stream
    target; with a single blend and ridge nothing is chosen.
    """
    w_DU = w_DU.double()
    bias_D = torch.zeros(w_DU.shape[0], dtype=torch.float64, device=w_DU.device)
    bias_D = bias_D if b_D is None else b_D.double()
    best = (blends[0], ridges[0], float("nan"))
    if held is not None and len(ridges) * len(blends) > 1:
        best = _choose(w_DU, encode_US, fit, held, ridges, blends, owner)
    both = fit if held is None else _merge(fit, held)
    w_DS, shift_D = _solve(w_DU, encode_US, both, best[1], (best[0],), owner)[0]
    return Refit(
        w_DS=w_DS, b_D=bias_D + shift_D, blend=best[0], ridge=best[1], held_error=best[2]
    )


def _choose(
    w_DU: Tensor,
    encode_US: Tensor,
    fit: Joint,
    held: Joint,
    ridges: tuple[float, ...],
    blends: tuple[float, ...],
    owner: str,
) -> tuple[float, float, float]:
    best = (blends[0], ridges[0], float("inf"))
    for ridge in ridges:
        for blend, (w_DS, shift_D) in zip(
            blends, _solve(w_DU, encode_US, fit, ridge, blends, owner), strict=True
        ):
            error = _error(w_DU, encode_US, w_DS, shift_D, held)
            if error < best[2]:
                best = (blend, ridge, error)
    return best


def _solve(
    w_DU: Tensor,
    encode_US: Tensor,
    known: Joint,
    ridge: float,
    blends: tuple[float, ...],
    owner: str,
) -> list[tuple[Tensor, Tensor]]:
    """Writers and bias shifts for each blend, by one factorisation."""
    cov_SU = encode_US.T @ known.cov_UU
    own_SD = cov_SU @ w_DU.T
    lack_SD = encode_US.T @ known.cross_UD
    right = torch.cat([own_SD, lack_SD], dim=1)
    solved = ridge_solve(cov_SU @ encode_US, right, ridge, owner)
    own_SD, lack_SD = solved.split(w_DU.shape[0], dim=1)
    result = []
    for blend in blends:
        w_DS = (own_SD + blend * lack_SD).T
        shift_D = (w_DU - w_DS @ encode_US.T) @ known.mean_U + blend * known.lack_D
        result.append((w_DS, shift_D))
    return result


def _error(
    w_DU: Tensor, encode_US: Tensor, w_DS: Tensor, shift_D: Tensor, held: Joint
) -> float:
    """Mean squared error against the stream target, up to the variance of delta."""
    miss_DU = w_DU - w_DS @ encode_US.T
    mean_D = miss_DU @ held.mean_U + held.lack_D - shift_D
    spread = (miss_DU @ held.cov_UU * miss_DU).sum()
    return float(spread + 2 * (miss_DU * held.cross_UD.T).sum() + mean_D.square().sum())


def _merge(a: Joint, b: Joint) -> Joint:
    """Moments of the union of two sets."""
    count = a.count + b.count
    p, q = a.count / count, b.count / count
    mean_U, lack_D = p * a.mean_U + q * b.mean_U, p * a.lack_D + q * b.lack_D
    step_U, step_D = a.mean_U - b.mean_U, a.lack_D - b.lack_D
    return Joint(
        mean_U=mean_U,
        lack_D=lack_D,
        cov_UU=p * a.cov_UU + q * b.cov_UU + p * q * torch.outer(step_U, step_U),
        cross_UD=p * a.cross_UD + q * b.cross_UD + p * q * torch.outer(step_U, step_D),
        count=count,
    )
