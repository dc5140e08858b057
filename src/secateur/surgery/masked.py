"""When more inputs of a writer are masked, those that stay take over what the others gave.

The least-squares repair of `secateur.surgery.repair`, on weights that keep their dense shape.

Legend: U inputs of a writer (hidden neurons, or all context dims of all heads), L of them live so
far, D residual width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from secateur.models.weights import AttentionWeights, BranchWeights
from secateur.statistics import Sums
from secateur.surgery.moments import Moments, moments
from secateur.surgery.repair import repaired_writer


def take_over(
    weights: BranchWeights, before_U: Tensor, after_U: Tensor, sums: Sums, owner: str
) -> BranchWeights:
    """The weights with inputs in `before` but not in `after` folded into those in both.

    Columns of what closes become zero. `sums` are the hidden or context moments of the branch
    while units are live as `before_U` says. A writer without bias keeps none, so its inputs are
    not centred.
    """
    if isinstance(weights, AttentionWeights):
        w_DU, b_D = weights.o_DHV.flatten(1), weights.ob_D
        w_DU, b_D = _folded(w_DU, b_D, before_U, after_U, moments(sums), owner)
        return replace(weights, o_DHV=w_DU.unflatten(1, weights.v_HVD.shape[:2]), ob_D=b_D)
    w_DU, b_D = _folded(weights.w2_DF, weights.b2_D, before_U, after_U, moments(sums), owner)
    return replace(weights, w2_DF=w_DU, b2_D=b_D)


def _folded(
    w_DU: Tensor,
    b_D: Tensor | None,
    before_U: Tensor,
    after_U: Tensor,
    seen: Moments,
    owner: str,
) -> tuple[Tensor, Tensor | None]:
    live_L = before_U.nonzero()[:, 0].to(w_DU.device)
    stays_L = after_U[before_U].to(w_DU.device)
    mean_U, second_UU = seen.mean_U.to(w_DU.device), seen.cov_UU.to(w_DU.device)
    if b_D is None:
        mean_U, second_UU = torch.zeros_like(mean_U), seen.gram_UU.to(w_DU.device)
    known = Moments(mean_U=mean_U[live_L], cov_UU=second_UU[live_L][:, live_L], count=seen.count)
    kept_S = stays_L.nonzero()[:, 0]
    w_DS, bias_D = repaired_writer(w_DU[:, live_L], b_D, kept_S, known, "least_squares", owner)
    folded_DU = w_DU.double().clone()
    folded_DU[:, live_L[~stays_L]] = 0
    folded_DU[:, live_L[stays_L]] = w_DS
    return folded_DU, None if b_D is None else bias_D
