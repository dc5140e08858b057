"""Linear maps by ridge regression from moments: the one solver of every closed-form correction.

From inputs z (S) a map A (D, S) and a constant a (D,) are to give a target y (D):

    A = argmin E||y - A z - a||^2 + r ||A - P||^2
      = P + (C_yz - P C_zz) (C_zz + r I)^-1,      a = E y - A E z

with C the covariances, P a prior (zero unless given) and r a ridge relative to the mean of the
diagonal of C_zz (Hoerl & Kennard 1970). Means that count as zero give maps without a constant.

Where a layer y = W x + t (U inputs x) is to be given from fewer dims z = E^T x, `encoded` makes the
moments of z with that target from those of x with t. For a subset of inputs, E is a 0/1 matrix
and P = W E, so that the ridge holds the weights that stay where they were; dims of a rotation are
new, so P = 0.

Two targets may be blended. With t_0 the local one and t_1 that of the stream,

    A = A_0 + beta A_1,      A_1 = argmin E||(t_1 - t_0) - A z - a||^2 + r_1 ||A||^2

where what is missing from the stream (the lack) is partly due to chance in few images, so its own
ridge may be much stronger. Both ridges and beta in [0, 1] are chosen by the error against t_1 on
moments held out from the fit; in beta that error is a parabola. The blend is derived here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.moments import Moments, merged

RIDGE = 1e-5
"""Ridge relative to the mean of the covariance's diagonal."""


Solve = Callable[[Tensor], Tensor]
"""Right sides (S, T) to solutions (S, T)."""


def factored(gram_SS: Tensor, relative: float, owner: str) -> Solve:
    """Right (S, T) → X (S, T) with (G + r mean(diag G) I) X = right, by one factorisation in fp64.

    Falls back to the pseudo-inverse of G where G is singular beyond what the ridge mends, so that
    exactly duplicated units are no obstacle. Raises UserError, which names `owner`, where G is not
    finite.
    """
    if not bool(torch.isfinite(gram_SS).all()):
        raise UserError(
            f"{owner}: the calibration images give values that are not finite; check the "
            "preprocessing and the weights."
        )
    damped_SS = gram_SS.clone()
    damped_SS.diagonal().add_(relative * float(gram_SS.diagonal().mean()))
    factor_SS, failed = torch.linalg.cholesky_ex(damped_SS)
    if int(failed) == 0:
        return lambda right_ST: torch.cholesky_solve(right_ST, factor_SS)
    inverse_SS: Tensor = torch.linalg.pinv(gram_SS, hermitian=True)
    return lambda right_ST: inverse_SS @ right_ST


def ridge_solve(
    gram_SS: Tensor, right_ST: Tensor, relative: float, owner: str, *, steps: int = 1
) -> Tensor:
    """X (S, T), fp64, with G X = right (S, T) as far as the ridge allows; see `factored`.

    Every further step solves once more for what the last one leaves (iterated Tikhonov). Two steps
    square the bias of the ridge, so that exactly redundant units are predicted exactly.
    """
    return _stepped(factored(gram_SS, relative, owner), gram_SS, right_ST, steps)


def encoded(known: Moments, encode: Tensor | None, w_DU: Tensor) -> Moments:
    """Moments of z = E^T x with targets W x + t_k, from those of x with targets t_k (none: zero).

    `encode` holds the indices (S,) of kept inputs or a matrix E (U, S); None keeps all as they are.
    """
    own_D, own_UD = w_DU @ known.mean_U, known.cov_UU @ w_DU.T
    cross_KSD = _rows(own_UD, encode)[None]
    if known.cross_KUD is not None:
        cross_KSD = cross_KSD + _rows(known.cross_KUD, encode)
    cov_SS = known.cov_UU
    if encode is not None and encode.dtype == torch.long:
        cov_SS = cov_SS[encode[:, None], encode]
    elif encode is not None:
        cov_SS = encode.T @ cov_SS @ encode
    return Moments(
        mean_U=_rows(known.mean_U[:, None], encode)[:, 0],
        cov_UU=cov_SS,
        count=known.count,
        mean_KD=own_D[None] if known.mean_KD is None else own_D + known.mean_KD,
        cross_KUD=cross_KSD,
    )


def _rows(x_UD: Tensor, encode: Tensor | None) -> Tensor:
    """E^T x, for x (..., U, D)."""
    if encode is None:
        return x_UD
    return x_UD.index_select(-2, encode) if encode.dtype == torch.long else encode.T @ x_UD


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The map (D, S) and its constant (D,), fp64, with the ridges and the blend behind them.

    `held_error` is the squared error on held-out moments less the variance of the target: below
    zero where the map is better than a constant; NaN where nothing was held out.
    """

    w_DS: Tensor
    b_D: Tensor
    ridge: float
    lack_ridge: float
    blend: float
    held_error: float


def least_squares(
    fit: Moments,
    owner: str,
    *,
    held: Moments | None = None,
    prior_DS: Tensor | None = None,
    ridges: tuple[float, ...] = (RIDGE,),
    lack_ridges: tuple[float, ...] = (RIDGE,),
    blend: float | None = None,
    steps: int = 1,
) -> Solution:
    """The map from z to its target, or to a blend of its two targets; `owner` is named in errors.

    `fit` and `held` are moments of z with one or two targets. Ridges and blend (if None) are chosen
    on `held`, then both sets are solved together. Without `held` the first ridges are taken, and
    the blend given or 0. `steps`: see `ridge_solve`.
    """
    choice = _Choice(ridges[0], lack_ridges[0], blend or 0.0)
    if held is not None:
        maps, more = _candidates(fit, prior_DS, ridges, lack_ridges, owner, steps)
        choice = _chosen(held, maps, more, lack_ridges[0], blend)
        del maps, more
        fit = merged(fit, held)
    solve = factored(fit.cov_UU, choice.ridge, owner)
    found = _map(fit, _local(fit), prior_DS, solve, steps)
    w_DS, b_D = found.w_DS, found.b_D
    if choice.blend != 0 and (lack := _lack(fit)) is not None:
        if choice.lack_ridge != choice.ridge:
            del solve
            solve = factored(fit.cov_UU, choice.lack_ridge, owner)
        extra = _map(fit, lack, None, solve, steps)
        w_DS, b_D = w_DS + choice.blend * extra.w_DS, b_D + choice.blend * extra.b_D
    return Solution(
        w_DS=w_DS,
        b_D=b_D,
        ridge=choice.ridge,
        lack_ridge=choice.lack_ridge,
        blend=choice.blend,
        held_error=choice.error,
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    """A candidate and its error on held-out moments."""

    ridge: float
    lack_ridge: float
    blend: float
    error: float = float("nan")


@dataclass(frozen=True, slots=True)
class _Target:
    """Mean (D,) of a target and its covariance with z (S, D)."""

    mean_D: Tensor
    cross_SD: Tensor


@dataclass(frozen=True, slots=True)
class _Map:
    """A map (D, S) and its constant (D,)."""

    w_DS: Tensor
    b_D: Tensor


def _target(known: Moments, number: int) -> _Target:
    assert known.mean_KD is not None and known.cross_KUD is not None
    return _Target(known.mean_KD[number], known.cross_KUD[number])


def _local(known: Moments) -> _Target:
    return _target(known, 0)


def _lack(known: Moments) -> _Target | None:
    """What the second target has beyond the first; None without a second one."""
    if known.mean_KD is None or len(known.mean_KD) == 1:
        return None
    first, second = _target(known, 0), _target(known, 1)
    return _Target(second.mean_D - first.mean_D, second.cross_SD - first.cross_SD)


def _map(
    known: Moments, target: _Target, prior_DS: Tensor | None, solve: Solve, steps: int
) -> _Map:
    right_SD = target.cross_SD
    if prior_DS is not None:
        right_SD = right_SD - known.cov_UU @ prior_DS.T
    w_DS = _stepped(solve, known.cov_UU, right_SD, steps).T
    w_DS = w_DS if prior_DS is None else prior_DS + w_DS
    return _Map(w_DS, target.mean_D - w_DS @ known.mean_U)


def _stepped(solve: Solve, gram_SS: Tensor, right_ST: Tensor, steps: int) -> Tensor:
    solved_ST = solve(right_ST)
    for _ in range(steps - 1):
        solved_ST = solved_ST + solve(right_ST - gram_SS @ solved_ST)
    return solved_ST


def _candidates(
    fit: Moments,
    prior_DS: Tensor | None,
    ridges: tuple[float, ...],
    lack_ridges: tuple[float, ...],
    owner: str,
    steps: int,
) -> tuple[dict[float, _Map], dict[float, _Map]]:
    """The maps to the first target by ridge, and those to the lack, if any."""
    local, lack = _local(fit), _lack(fit)
    maps: dict[float, _Map] = {}
    more: dict[float, _Map] = {}
    for ridge in dict.fromkeys(ridges if lack is None else (*ridges, *lack_ridges)):
        # WHY: one factorisation serves both targets; it is freed before the next one.
        solve = factored(fit.cov_UU, ridge, owner)
        if ridge in ridges:
            maps[ridge] = _map(fit, local, prior_DS, solve, steps)
        if lack is not None and ridge in lack_ridges:
            more[ridge] = _map(fit, lack, None, solve, steps)
        del solve
    return maps, more


def _chosen(
    held: Moments,
    maps: dict[float, _Map],
    more: dict[float, _Map],
    lack_ridge: float,
    blend: float | None,
) -> _Choice:
    """The ridges and the blend with the least error against the last target on held-out moments."""
    target = _target(held, -1)
    linear_DS = target.cross_SD.T
    gains = {other: lack.w_DS @ held.mean_U + lack.b_D for other, lack in more.items()}
    bends = {
        other: float((lack.w_DS @ held.cov_UU * lack.w_DS).sum() + gains[other].square().sum())
        for other, lack in more.items()
    }
    found: list[_Choice] = []
    for ridge, local in maps.items():
        seen_DS = local.w_DS @ held.cov_UU
        miss_D = target.mean_D - local.w_DS @ held.mean_U - local.b_D
        level = float((seen_DS * local.w_DS).sum() - 2 * (local.w_DS * linear_DS).sum())
        level += float(miss_D.square().sum())
        if not more:
            found.append(_Choice(ridge, lack_ridge, blend or 0.0, level))
        for other, lack in more.items():
            slope = 2 * float((lack.w_DS * (seen_DS - linear_DS)).sum())
            slope -= 2 * float((miss_D * gains[other]).sum())
            bend = bends[other]
            best = min(max(-slope / (2 * bend), 0.0), 1.0) if bend > 0 else 0.0
            share = best if blend is None else blend
            error = level + share * slope + share**2 * bend
            found.append(_Choice(ridge, other, share, error))
    return min(found, key=lambda choice: choice.error)
