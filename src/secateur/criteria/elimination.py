"""Optimal-brain elimination of the inputs of a writer, with the whole error curve from one run.

Removing unit j from y = W x and refitting the others costs ||w_j||^2 / [H^-1]_jj, with H the
second moment of x (Hassibi & Stork 1993; structured: ZipLM, arXiv 2302.04089; OSSCAR, arXiv
2403.12983). Units go cheapest first; after each step W and H^-1 are updated, so that later costs
see what was already lost. Legend: D residual width, U units, P units of one step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 96
"""Units are removed in about this many steps: a step takes the cheapest share of those left."""
KEPT_SHARE = 0.9
"""Matrices shrink when less than this share of their units is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elimination:
    """`order` lists units from the first removed to the last; `errors[s]` is the error at size s.

    Errors are summed squared deviations of the (whitened) output per token, relative to nothing;
    `errors[U]` is 0.
    """

    order: Tensor
    errors: Tensor

    def kept(self, size: int) -> Tensor:
        """Indices of the `size` units that stay, ascending."""
        return self.order[self.order.numel() - size :].sort().values


def eliminate(cov_UU: Tensor, w_DU: Tensor, ridge: float, *, steps: int = STEPS) -> Elimination:
    """Order the units of a writer by greedy elimination on the covariance of its inputs, fp64.

    The covariance (not the Gram) is the right metric because means go into the bias exactly.
    `ridge` is relative to the mean of the diagonal. `w_DU` may be whitened on the left.
    """
    w_DU = w_DU.double().clone()
    units = cov_UU.shape[0]
    inverse_UU = damped_inverse(cov_UU, ridge)
    left = torch.arange(units, device=cov_UU.device)
    gone = torch.zeros(units, dtype=torch.bool, device=cov_UU.device)
    order: list[Tensor] = []
    errors = torch.zeros(units + 1, dtype=torch.float64)
    rest = units
    while rest > 0:
        count = -(-rest // steps)
        cost_U = w_DU.square().sum(0) / inverse_UU.diagonal()
        cost_U[gone] = torch.inf
        out = cost_U.argsort()[:count]
        rows_PU, w_PD = inverse_UU[out], w_DU[:, out].T
        inner_PP = rows_PU[:, out]
        gain_PU = torch.linalg.solve(inner_PP, rows_PU)
        step_cost = float((w_PD * torch.linalg.solve(inner_PP, w_PD)).sum())
        _fill_(errors, rest, count, step_cost, cost_U[out])
        order.append(left[out])
        w_DU -= w_PD.T @ gain_PU
        inverse_UU.addmm_(rows_PU.T, gain_PU, alpha=-1)
        gone[out] = True
        rest -= count
        # WHY: what is gone stays in place for a while, since copying the rest costs more.
        if rest < KEPT_SHARE * left.numel():
            keep = (~gone).nonzero()[:, 0]
            w_DU, left, gone = w_DU[:, keep], left[keep], gone[keep]
            inverse_UU = inverse_UU[keep]
            inverse_UU = inverse_UU[:, keep]
    return Elimination(order=torch.cat(order).cpu(), errors=errors)


def damped_inverse(cov_UU: Tensor, ridge: float) -> Tensor:
    """(C + ridge * mean(diag C) I)^-1 in fp64, symmetric."""
    damped_UU = cov_UU.to(torch.float64, copy=True)
    tiny = torch.finfo(torch.float64).tiny
    damped_UU.diagonal().add_(max(ridge * float(cov_UU.diagonal().mean()), tiny))
    factor_UU, failed = torch.linalg.cholesky_ex(damped_UU)
    inverse_UU: Tensor
    if int(failed) == 0:
        del damped_UU
        inverse_UU = torch.cholesky_inverse(factor_UU)
    else:  # WHY: rounding of the sums may leave slightly negative eigenvalues.
        inverse_UU = torch.linalg.inv(damped_UU)
    return inverse_UU


def _fill_(errors: Tensor, size: int, count: int, step_cost: float, costs_P: Tensor) -> None:
    """Write the errors of the sizes that one step passes, split like the units' own costs."""
    share_P = costs_P.clamp(min=0).cumsum(0).cpu()
    total = float(share_P[-1])
    fraction_P = share_P / total if total > 0 else torch.linspace(1 / count, 1, count)
    base = float(errors[size])
    for i in range(count):
        errors[size - 1 - i] = base + max(step_cost, 0.0) * float(fraction_P[i])


def eliminate_heads(cov_UU: Tensor, w_DU: Tensor, heads: int, ridge: float) -> Elimination:
    """The same for whole heads, each a run of U / heads consecutive inputs; one at a time.

    Removing the inputs M of a head costs tr(W_M [(H^-1)_MM]^-1 W_M^T).
    """
    w_DU = w_DU.double().clone()
    dims = cov_UU.shape[0] // heads
    inverse_UU = damped_inverse(cov_UU, ridge)
    left = list(range(heads))
    order: list[int] = []
    errors = torch.zeros(heads + 1, dtype=torch.float64)
    while left:
        costs: list[float] = []
        for place in range(len(left)):
            block = slice(place * dims, (place + 1) * dims)
            inner = torch.linalg.solve(inverse_UU[block, block], w_DU[:, block].T)
            costs.append(float((w_DU[:, block].T * inner).sum()))
        place = min(range(len(left)), key=costs.__getitem__)
        errors[len(left) - 1] = errors[len(left)] + max(costs[place], 0.0)
        block = slice(place * dims, (place + 1) * dims)
        keep = torch.ones(len(left) * dims, dtype=torch.bool, device=cov_UU.device)
        keep[block] = False
        gain = torch.linalg.solve(inverse_UU[block, block], inverse_UU[block])
        w_DU = (w_DU - w_DU[:, block] @ gain)[:, keep]
        inverse_UU = (inverse_UU - inverse_UU[:, block] @ gain)[keep][:, keep]
        order.append(left.pop(place))
    return Elimination(order=torch.tensor(order), errors=errors)
