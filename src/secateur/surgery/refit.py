"""Refit of a writer on what is left of its inputs, towards a blend of two targets.

Inputs x (U) become z = E^T x (S), by selection or rotation. The local target is what the layer's
dense weights give on the same stream, y + local, with y = W x + b what the present writer gives
(local is zero unless the branch changed elsewhere, as when its queries and keys were reduced).
The stream target is y + lack: what the dense model's stream holds at this place, so that later
layers correct earlier ones. All solutions come from one set of moments:

    A_local = argmin E||W x + b + local - A z - a||^2 + ridge ||A - P||^2
    A_lack  = argmin E||lack - local - A z - a||^2 + lack_ridge ||A||^2
    A = A_local + beta A_lack

P is the writer as it was for the inputs that stay (zero for a rotation, whose dims are new), so
that a ridge holds it there instead of shrinking it. What is missing from the stream is partly due
to chance in few images, so its own ridge may be much stronger. Both ridges and beta in [0, 1] are
chosen by the error against the stream target on held-out images; in beta it is a parabola.
Legend: D residual width, U inputs before, S inputs kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.statistics import Sums
from secateur.surgery.moments import ridge_solve

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
LACK_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


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


def joint_moments(sums: Sums, width: int, *, centred: bool = True) -> Joint:
    """Joint moments from `count`, `sum`, `gram` and, where there are corrections to residual
    width `width`, `correction_sum` (2, D) and `correction_cross` (2, U, D); else those are 0.
    Not `centred`, means count as 0, so that a writer without bias is fitted."""
    # WHY: in place, since these matrices are what memory is needed for.
    count = float(sums["count"])
    mean_U = sums["sum"].double() / count if centred else torch.zeros_like(sums["sum"]).double()
    cov_UU = sums["gram"].to(torch.float64, copy=True).div_(count)
    cov_UU = cov_UU.addr_(mean_U, mean_U, alpha=-1)
    if "correction_sum" in sums:
        mean_2D = sums["correction_sum"].double() / count
        mean_2D = mean_2D if centred else torch.zeros_like(mean_2D)
        cross_2UD = sums["correction_cross"].to(torch.float64, copy=True).div_(count)
        for cross_UD, mean_D in zip(cross_2UD, mean_2D, strict=True):
            cross_UD.addr_(mean_U, mean_D, alpha=-1)
    else:
        mean_2D = mean_U.new_zeros(2, width)
        cross_2UD = mean_U.new_zeros(()).expand(2, mean_U.numel(), width)
    return Joint(
        mean_U=mean_U,
        cov_UU=(cov_UU + cov_UU.T).div_(2),
        mean_2D=mean_2D,
        cross_2UD=cross_2UD,
        count=count,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """A refitted writer (D, S) and bias (D,), with the blend and ridges that were chosen."""

    w_DS: Tensor
    b_D: Tensor
    blend: float
    ridge: float
    lack_ridge: float
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
    lack_ridges: tuple[float, ...] = LACK_RIDGES,
    blend: float | None = None,
    owner: str = "",
) -> Refit:
    """The best writer of z = E^T x; chosen on `held`, then solved on both sets together.

    Without `held` nothing is chosen: the first ridges are used, and the blend given or 0. Errors
    are measured against the stream target.
    """
    w_DU = w_DU.double()
    bias_D = torch.zeros(w_DU.shape[0], dtype=torch.float64, device=w_DU.device)
    bias_D = bias_D if b_D is None else b_D.double()
    best = _Choice(ridge=ridges[0], lack_ridge=lack_ridges[0], blend=blend or 0.0)
    if held is not None:
        best = _choose(w_DU, encode, fit, held, ridges, lack_ridges, blend, owner)
    both = fit if held is None else merge(fit, held)
    kept = _project(both, w_DU, encode)
    local = _local(w_DU, encode, kept, both, best.ridge, owner)
    lack = _lack(kept, both, best.lack_ridge, owner)
    return Refit(
        w_DS=local.w_DS + best.blend * lack.w_DS,
        b_D=bias_D + local.shift_D + best.blend * lack.shift_D,
        blend=best.blend,
        ridge=best.ridge,
        lack_ridge=best.lack_ridge,
        held_error=best.error,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A candidate and its error on held-out images."""

    ridge: float
    lack_ridge: float
    blend: float
    error: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projected:
    """Joint moments in the kept dims; `seen_SD` is their covariance with W x."""

    mean_S: Tensor
    cov_SS: Tensor
    seen_SD: Tensor
    cross_2SD: Tensor


def _project(known: Joint, w_DU: Tensor, encode: Encode) -> _Projected:
    seen_UD = known.cov_UU @ w_DU.T
    if encode.dtype == torch.long:
        return _Projected(
            mean_S=known.mean_U[encode],
            cov_SS=known.cov_UU[encode[:, None], encode],
            seen_SD=seen_UD[encode],
            cross_2SD=known.cross_2UD[:, encode],
        )
    return _Projected(
        mean_S=encode.T @ known.mean_U,
        cov_SS=encode.T @ known.cov_UU @ encode,
        seen_SD=encode.T @ seen_UD,
        cross_2SD=encode.T @ known.cross_2UD,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """A writer (D, S) and what it adds to the bias (D,)."""

    w_DS: Tensor
    shift_D: Tensor


def _local(
    w_DU: Tensor, encode: Encode, kept: _Projected, known: Joint, ridge: float, owner: str
) -> _Writer:
    """The writer that gives what the dense layer gives on the present stream."""
    selected = encode.dtype == torch.long
    prior_DS = w_DU[:, encode] if selected else w_DU.new_zeros(w_DU.shape[0], encode.shape[1])
    right_SD = kept.seen_SD + kept.cross_2SD[0] - kept.cov_SS @ prior_DS.T
    w_DS = prior_DS + ridge_solve(kept.cov_SS, right_SD, ridge, owner).T
    return _Writer(w_DS=w_DS, shift_D=w_DU @ known.mean_U - w_DS @ kept.mean_S + known.mean_2D[0])


def _lack(kept: _Projected, known: Joint, ridge: float, owner: str) -> _Writer:
    """What to add so that the stream, too, becomes that of the dense model."""
    w_DS = ridge_solve(kept.cov_SS, kept.cross_2SD[1] - kept.cross_2SD[0], ridge, owner).T
    return _Writer(w_DS=w_DS, shift_D=known.mean_2D[1] - known.mean_2D[0] - w_DS @ kept.mean_S)


def _choose(
    w_DU: Tensor,
    encode: Encode,
    fit: Joint,
    held: Joint,
    ridges: tuple[float, ...],
    lack_ridges: tuple[float, ...],
    blend: float | None,
    owner: str,
) -> _Choice:
    """The ridges and the blend with the least error on the held-out images."""
    kept, test = _project(fit, w_DU, encode), _project(held, w_DU, encode)
    # The part of the error that does not depend on the candidate, and its linear part.
    whole = float((w_DU @ held.cov_UU * w_DU).sum() + 2 * (w_DU * held.cross_2UD[1].T).sum())
    linear_DS = (test.seen_SD + test.cross_2SD[1]).T
    target_D = w_DU @ held.mean_U + held.mean_2D[1]
    lacks = {ridge: _lack(kept, fit, ridge, owner) for ridge in lack_ridges}
    found = []
    for ridge in ridges:
        local = _local(w_DU, encode, kept, fit, ridge, owner)
        seen_DS = local.w_DS @ test.cov_SS
        miss_D = target_D - local.w_DS @ test.mean_S - local.shift_D
        level = float((seen_DS * local.w_DS).sum() - 2 * (local.w_DS * linear_DS).sum())
        level += whole + float(miss_D.square().sum())
        for lack_ridge, lack in lacks.items():
            gain_D = lack.w_DS @ test.mean_S + lack.shift_D
            slope = float(
                2 * (lack.w_DS * (seen_DS - linear_DS)).sum() - 2 * (miss_D * gain_D).sum()
            )
            bend = float((lack.w_DS @ test.cov_SS * lack.w_DS).sum() + gain_D.square().sum())
            best = min(max(-slope / (2 * bend), 0.0), 1.0) if bend > 0 else 0.0
            share = best if blend is None else blend
            error = level + share * slope + share**2 * bend
            found.append(_Choice(ridge=ridge, lack_ridge=lack_ridge, blend=share, error=error))
    return min(found, key=lambda choice: choice.error)


def merge(a: Joint, b: Joint) -> Joint:
    """Moments of the union of two sets."""
    count = a.count + b.count
    p, q = a.count / count, b.count / count
    step_U, step_2D = a.mean_U - b.mean_U, a.mean_2D - b.mean_2D
    # WHY: in place, since these matrices are what memory is needed for.
    cross_2UD = (p * a.cross_2UD).add_(b.cross_2UD, alpha=q)
    for cross_UD, step_D in zip(cross_2UD, step_2D, strict=True):
        cross_UD.addr_(step_U, step_D, alpha=p * q)
    return Joint(
        mean_U=p * a.mean_U + q * b.mean_U,
        mean_2D=p * a.mean_2D + q * b.mean_2D,
        cov_UU=(p * a.cov_UU).add_(b.cov_UU, alpha=q).addr_(step_U, step_U, alpha=p * q),
        cross_2UD=cross_2UD,
        count=count,
    )
