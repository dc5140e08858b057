"""When more inputs of a writer are masked, those that stay take over what the others gave.

    W_S <- W_S + W_P M,  b <- b + W_P (mean_P - M mean_S),  M = C_PS C_SS^-1

with S the inputs that stay, P those that go now, and C the covariance of what they carry while
both are there: the least-squares repair of `secateur.surgery.repair` on weights of the dense shape.

Legend: U inputs of a writer (hidden neurons, or all context dims of all heads), S and P of them,
D residual width, F hidden neurons, H heads, V value dims.
"""

from dataclasses import replace

import torch
from torch import Tensor

from secateur.anatomy.weights import AttentionWeights, BranchWeights
from secateur.evidence import Sums
from secateur.surgery.moments import RIDGE, iterated_solve, moments


def take_over(
    weights: BranchWeights, before_U: Tensor, after_U: Tensor, sums: Sums, owner: str
) -> BranchWeights:
    """The weights with P = before and not after folded into S; the columns of P become zero.

    `sums` are the hidden or context moments of the branch while units are live as `before_U` says.
    A writer without bias keeps none, so its inputs are not centred.
    """
    if isinstance(weights, AttentionWeights):
        heads, dims = weights.v_HVD.shape[:2]
        w_DU, b_D = _folded(weights.o_DHV.flatten(1), weights.ob_D, before_U, after_U, sums, owner)
        return replace(weights, o_DHV=w_DU.unflatten(1, (heads, dims)), ob_D=b_D)
    w_DU, b_D = _folded(weights.w2_DF, weights.b2_D, before_U, after_U, sums, owner)
    return replace(weights, w2_DF=w_DU, b2_D=b_D)


def _folded(
    w_DU: Tensor, b_D: Tensor | None, before_U: Tensor, after_U: Tensor, sums: Sums, owner: str
) -> tuple[Tensor, Tensor | None]:
    seen = moments(sums)
    stays_S, goes_P = (
        mask.to(w_DU.device).nonzero()[:, 0] for mask in (before_U & after_U, before_U & ~after_U)
    )
    w_DU = w_DU.double().clone()
    gone_DP = w_DU[:, goes_P]
    second_UU = seen.gram_UU if b_D is None else seen.cov_UU
    second_UU = second_UU.to(w_DU.device)
    mix_SP = torch.zeros(stays_S.numel(), goes_P.numel(), dtype=w_DU.dtype, device=w_DU.device)
    if stays_S.numel():
        within_SS = second_UU[stays_S][:, stays_S]
        mix_SP = iterated_solve(within_SS, second_UU[stays_S][:, goes_P], RIDGE, owner)
    w_DU[:, stays_S] += gone_DP @ mix_SP.T
    w_DU[:, goes_P] = 0
    if b_D is not None:
        mean_U = seen.mean_U.to(w_DU.device)
        b_D = b_D.double() + gone_DP @ (mean_U[goes_P] - mix_SP.T @ mean_U[stays_S])
    return w_DU, b_D
