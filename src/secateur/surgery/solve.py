"""Linear maps by ridge regression from moments: the one solver of every closed-form correction.

From inputs z (S) a map A (D, S) and a constant a (D,) are to give a target y (D):

    A = argmin E||y - A z - a||^2 + r ||A - P||^2
      = P + (C_yz - P C_zz) (C_zz + r I)^-1,      a = E y - A E z

with C the covariances, P a prior (zero unless given) and r a ridge relative to the mean of the
diagonal of C_zz (Hoerl & Kennard 1970). Means that count as zero give maps without a constant.

A second target, the lack d, is what should be added to y but is partly due to chance in few images.
So its map has a ridge of its own, which may be much stronger, and counts by a share:

    A = A_0 + beta A_1,      A_1 = argmin E||d - A z - a||^2 + r_1 ||A||^2

Both ridges and beta in [0, 1] are chosen by the error against y + d on moments held out from the
fit; in beta that error is a parabola. The blend is derived here.

Where a layer W x (U inputs x) is to be given from fewer dims z = E^T x, `encoded` makes the moments
of z with that target. For a subset of inputs, E is a 0/1 matrix and P = W E, so that the ridge
holds the weights that stay where they were; dims of a rotation are new, so P = 0.

Legend: U inputs before, S inputs of the map, D outputs, T right sides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.moments import Moments

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
    """Moments of z = E^T x with what a layer W x should give from it.

    `encode` holds the indices (S,) of kept inputs or a matrix E (U, S); None keeps all as they are.
    Targets of `known`, where it has such, are corrections of W x: t_0 on its own and t_1 in its
    place. The target then is W x + t_0 and the lack t_1 - t_0.
    """
    mean_KD = (w_DU @ known.mean_U)[None]
    cross_KSD = _rows(known.cov_UU @ w_DU.T, encode)[None]
    if known.mean_KD is not None and known.cross_KUD is not None:
        more_KD, more_KSD = known.mean_KD, _rows(known.cross_KUD, encode)
        mean_KD = torch.cat([mean_KD + more_KD[:1], more_KD[1:] - more_KD[:1]])
        cross_KSD = torch.cat([cross_KSD + more_KSD[:1], more_KSD[1:] - more_KSD[:1]])
    cov_SS = known.cov_UU
    if encode is not None and encode.dtype == torch.long:
        cov_SS = cov_SS[encode[:, None], encode]
    elif encode is not None:
        cov_SS = encode.T @ cov_SS @ encode
    return Moments(
        mean_U=_rows(known.mean_U[:, None], encode)[:, 0],
        cov_UU=cov_SS,
        count=known.count,
        mean_KD=mean_KD,
        cross_KUD=cross_KSD,
    )


def _rows(x_UD: Tensor, encode: Tensor | None) -> Tensor:
    """E^T x, for x (..., U, D)."""
    if encode is None:
        return x_UD
    return x_UD.index_select(-2, encode) if encode.dtype == torch.long else encode.T @ x_UD


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Relative ridges of the target's and the lack's map, and the share of the latter.

    `held_error` is the squared error on held-out moments less the variance of y + d: below zero
    where the map is better than a constant; NaN where nothing was held out.
    """

    ridge: float = RIDGE
    lack_ridge: float = RIDGE
    blend: float = 0.0
    held_error: float = float("nan")


@dataclass(frozen=True, slots=True)
class LinearMap:
    """A map (D, S) and its constant (D,), fp64."""

    w_DS: Tensor
    b_D: Tensor


def least_squares(
    known: Moments,
    owner: str,
    choice: Choice | None = None,
    *,
    prior_DS: Tensor | None = None,
    steps: int = 1,
) -> LinearMap:
    """The map from z to its target and a share of its lack; `owner` is named in errors.

    `known` are moments of z with the target and, where there is one, the lack. `steps`: see
    `ridge_solve`.
    """
    choice = choice or Choice()
    target, lack = _targets(known)
    solve = factored(known.cov_UU, choice.ridge, owner)
    found = _map(known, target, prior_DS, solve, steps)
    if lack is None or choice.blend == 0:
        return found
    if choice.lack_ridge != choice.ridge:
        del solve
        solve = factored(known.cov_UU, choice.lack_ridge, owner)
    more = _map(known, lack, None, solve, steps)
    return LinearMap(found.w_DS + choice.blend * more.w_DS, found.b_D + choice.blend * more.b_D)


def choose(
    fit: Moments,
    held: Moments,
    owner: str,
    ridges: tuple[float, ...],
    lack_ridges: tuple[float, ...] = (RIDGE,),
    blend: float | None = None,
    *,
    prior_DS: Tensor | None = None,
    steps: int = 1,
) -> Choice:
    """The ridges, and the blend unless given, whose map from `fit` has the least error on `held`.

    Both are moments of z as `least_squares` takes them.
    """
    maps, more = _candidates(fit, owner, ridges, lack_ridges, prior_DS, steps)
    assert held.mean_KD is not None and held.cross_KUD is not None
    target_D, linear_DS = held.mean_KD.sum(0), held.cross_KUD.sum(0).T
    gains = {ridge: lack.w_DS @ held.mean_U + lack.b_D for ridge, lack in more.items()}
    bends = {
        ridge: float((lack.w_DS @ held.cov_UU * lack.w_DS).sum() + gains[ridge].square().sum())
        for ridge, lack in more.items()
    }
    found: list[Choice] = []
    for ridge, local in maps.items():
        seen_DS = local.w_DS @ held.cov_UU
        miss_D = target_D - local.w_DS @ held.mean_U - local.b_D
        level = float((seen_DS * local.w_DS).sum() - 2 * (local.w_DS * linear_DS).sum())
        level += float(miss_D.square().sum())
        if not more:
            found.append(Choice(ridge=ridge, held_error=level))
        for other, lack in more.items():
            slope = 2 * float((lack.w_DS * (seen_DS - linear_DS)).sum())
            slope -= 2 * float((miss_D * gains[other]).sum())
            bend = bends[other]
            best = min(max(-slope / (2 * bend), 0.0), 1.0) if bend > 0 else 0.0
            share = best if blend is None else blend
            error = level + share * slope + share**2 * bend
            found.append(Choice(ridge=ridge, lack_ridge=other, blend=share, held_error=error))
    return min(found, key=lambda choice: choice.held_error)


def _candidates(
    fit: Moments,
    owner: str,
    ridges: tuple[float, ...],
    lack_ridges: tuple[float, ...],
    prior_DS: Tensor | None,
    steps: int,
) -> tuple[dict[float, LinearMap], dict[float, LinearMap]]:
    """The maps to the target by ridge, and those to the lack, if any."""
    target, lack = _targets(fit)
    maps: dict[float, LinearMap] = {}
    more: dict[float, LinearMap] = {}
    for ridge in dict.fromkeys(ridges if lack is None else (*ridges, *lack_ridges)):
        # WHY: one factorisation serves both targets; it is freed before the next one.
        solve = factored(fit.cov_UU, ridge, owner)
        if ridge in ridges:
            maps[ridge] = _map(fit, target, prior_DS, solve, steps)
        if lack is not None and ridge in lack_ridges:
            more[ridge] = _map(fit, lack, None, solve, steps)
        del solve
    return maps, more


@dataclass(frozen=True, slots=True)
class _Target:
    """Mean (D,) of a target and its covariance with z (S, D)."""

    mean_D: Tensor
    cross_SD: Tensor


def _targets(known: Moments) -> tuple[_Target, _Target | None]:
    """The target and the lack, None without one."""
    assert known.mean_KD is not None and known.cross_KUD is not None
    pairs = zip(known.mean_KD, known.cross_KUD, strict=True)
    target, *more = [_Target(mean_D, cross_SD) for mean_D, cross_SD in pairs]
    return target, more[0] if more else None


def _map(
    known: Moments, target: _Target, prior_DS: Tensor | None, solve: Solve, steps: int
) -> LinearMap:
    right_SD = target.cross_SD
    if prior_DS is not None:
        right_SD = right_SD - known.cov_UU @ prior_DS.T
    w_DS = _stepped(solve, known.cov_UU, right_SD, steps).T
    w_DS = w_DS if prior_DS is None else prior_DS + w_DS
    return LinearMap(w_DS, target.mean_D - w_DS @ known.mean_U)


def _stepped(solve: Solve, gram_SS: Tensor, right_ST: Tensor, steps: int) -> Tensor:
    solved_ST = solve(right_ST)
    for _ in range(steps - 1):
        solved_ST = solved_ST + solve(right_ST - gram_SS @ solved_ST)
    return solved_ST
