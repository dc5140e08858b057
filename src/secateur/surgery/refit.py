"""Refit of a writer on what is left of its inputs, towards a blend of two targets.

Inputs x (U) become z = E^T x (S), by selection or rotation. The local target is what the layer's
dense weights give on the same stream, y + local, with y = W x + b what the present writer gives
(local is zero unless the branch changed elsewhere, as when its queries and keys were reduced).
The stream target is y + lack: what the dense model's stream holds at this place, so that later
layers correct earlier ones. All solutions come from one set of moments:

    A_beta = argmin E||W x + b + (1 - beta) local + beta lack - A z - a||^2 + ridge ||A||^2

beta and the ridge are chosen by the error against the stream target on held-out images.
Legend: D residual width, U inputs before, S inputs kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.evidence import Sums
from secateur.surgery.moments import ridge_solve

RIDGES = (1e-4, 1e-3, 1e-2)
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Moments of inputs x and of both corrections over weighted tokens, fp64.

    `mean_U`, `cov_UU` of x; for i in 0 (local) and 1 (lack): `mean_2D`, and `cross_2UD` its
    covariance with x.
    """

    mean_U: Tensor
    cov_UU: Tensor
    mean_2D: Tensor
    cross_2UD: Tensor
    count: float


def joint_moments(sums: Sums, width: int) -> Joint:
    """Joint moments from `count`, `sum`, `gram` and, where there are corrections to residual
    width `width`, `correction_sum` (2, D) and `correction_cross` (2, U, D); else those are 0."""
    count = float(sums["count"])
    mean_U = sums["sum"].double() / count
    cov_UU = sums["gram"].double() / count - torch.outer(mean_U, mean_U)
    if "correction_sum" in sums:
        mean_2D = sums["correction_sum"].double() / count
        cross_2UD = sums["correction_cross"].double() / count
        cross_2UD = cross_2UD - mean_U[:, None] * mean_2D[:, None, :]
    else:
        mean_2D = mean_U.new_zeros(2, width)
        cross_2UD = mean_U.new_zeros(2, mean_U.numel(), width)
    return Joint(
        mean_U=mean_U,
        cov_UU=(cov_UU + cov_UU.T) / 2,
        mean_2D=mean_2D,
        cross_2UD=cross_2UD,
        count=count,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """A refitted writer (D, S) and bias (D,), with the blend and ridge that were chosen."""

    w_DS: Tensor
    b_D: Tensor
    blend: float
    ridge: float
    held_error: float


Encode = Tensor
"""Either indices (S,) of kept inputs, or a matrix (U, S) that rotates onto fewer dims."""


def refit(
    w_DU: Tensor,
    b_D: Tensor | None,
    encode: Encode,
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
        best = _choose(w_DU, encode, fit, held, ridges, blends, owner)
    both = fit if held is None else merge(fit, held)
    solution = _solve(w_DU, _project(both, encode), both, best[1], owner)
    w_DS, shift_D = solution.at(best[0])
    return Refit(w_DS=w_DS, b_D=bias_D + shift_D, blend=best[0], ridge=best[1], held_error=best[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projected:
    """Joint moments with one side in the kept dims."""

    mean_S: Tensor
    cov_SU: Tensor
    cov_SS: Tensor
    cross_2SD: Tensor


def _project(known: Joint, encode: Encode) -> _Projected:
    if encode.dtype == torch.long:
        cov_SU = known.cov_UU[encode]
        return _Projected(
            mean_S=known.mean_U[encode],
            cov_SU=cov_SU,
            cov_SS=cov_SU[:, encode],
            cross_2SD=known.cross_2UD[:, encode],
        )
    cov_SU = encode.T @ known.cov_UU
    return _Projected(
        mean_S=encode.T @ known.mean_U,
        cov_SU=cov_SU,
        cov_SS=cov_SU @ encode,
        cross_2SD=encode.T @ known.cross_2UD,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solution:
    """Writers at every blend: w = local + blend * (lack - local), with their bias shifts."""

    w_2DS: Tensor
    shift_2D: Tensor

    def at(self, blend: float) -> tuple[Tensor, Tensor]:
        return (
            torch.lerp(self.w_2DS[0], self.w_2DS[1], blend),
            torch.lerp(self.shift_2D[0], self.shift_2D[1], blend),
        )


def _solve(w_DU: Tensor, kept: _Projected, known: Joint, ridge: float, owner: str) -> _Solution:
    """The solutions of both targets, by one factorisation."""
    own_SD = kept.cov_SU @ w_DU.T
    right = torch.cat([own_SD, *kept.cross_2SD], dim=1)
    solved = ridge_solve(kept.cov_SS, right, ridge, owner)
    own_SD, local_SD, lack_SD = solved.split(w_DU.shape[0], dim=1)
    w_2DS = torch.stack([(own_SD + local_SD).T, (own_SD + lack_SD).T])
    shift_2D = w_DU @ known.mean_U - w_2DS @ kept.mean_S + known.mean_2D
    return _Solution(w_2DS=w_2DS, shift_2D=shift_2D)


def _choose(
    w_DU: Tensor,
    encode: Encode,
    fit: Joint,
    held: Joint,
    ridges: tuple[float, ...],
    blends: tuple[float, ...],
    owner: str,
) -> tuple[float, float, float]:
    """The blend and ridge with the least error on the held-out images, and that error."""
    kept, test = _project(fit, encode), _project(held, encode)
    # Everything of the error that does not depend on the candidate, and its linear part.
    whole = float((w_DU @ held.cov_UU * w_DU).sum() + 2 * (w_DU * held.cross_2UD[1].T).sum())
    linear_DS = (test.cov_SU @ w_DU.T + test.cross_2SD[1]).T
    target_D = w_DU @ held.mean_U + held.mean_2D[1]
    best = (blends[0], ridges[0], float("inf"))
    for ridge in ridges:
        solution = _solve(w_DU, kept, fit, ridge, owner)
        for blend in blends:
            w_DS, shift_D = solution.at(blend)
            bent = (w_DS @ test.cov_SS * w_DS).sum() - 2 * (w_DS * linear_DS).sum()
            miss_D = target_D - w_DS @ test.mean_S - shift_D
            error = whole + float(bent + miss_D.square().sum())
            if error < best[2]:
                best = (blend, ridge, error)
    return best


def merge(a: Joint, b: Joint) -> Joint:
    """Moments of the union of two sets."""
    count = a.count + b.count
    p, q = a.count / count, b.count / count
    step_U, step_2D = a.mean_U - b.mean_U, a.mean_2D - b.mean_2D
    cross_2UD = p * a.cross_2UD + q * b.cross_2UD
    return Joint(
        mean_U=p * a.mean_U + q * b.mean_U,
        mean_2D=p * a.mean_2D + q * b.mean_2D,
        cov_UU=p * a.cov_UU + q * b.cov_UU + p * q * torch.outer(step_U, step_U),
        cross_2UD=cross_2UD + p * q * step_U[:, None] * step_2D[:, None, :],
        count=count,
    )
