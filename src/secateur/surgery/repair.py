"""Repair of a writer whose inputs were partly removed, in closed form.

The writer computes y = W x + b from units x. With the kept units S and the removed ones P:

- `none`: y = W_S x_S + b.
- `mean`: b + W_P mu_P: removed units are replaced by their mean (VBP, arXiv 2507.12988; FLAP,
  AAAI 2024, which overwrites the bias where we add).
- `least_squares`: x_P is predicted from x_S by ridge regression,
  B = C_PS (C_SS + r I)^-1, iterated once, c = mu_P - B mu_S; W <- W_S + W_P B, b <- b + W_P c
  (CORP, arXiv 2602.05243; equal to the refit of OBS-type methods).
- `least_squares_symmetric`: the same here; see `secateur.surgery.compensate` for logits.

Legend: D residual width, U units before, S units kept, P units removed.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.surgery.moments import RIDGE, Moments, iterated_solve

Repair = Literal["none", "mean", "least_squares", "least_squares_symmetric"]
REPAIRS: tuple[str, ...] = get_args(Repair)
SOLVED = ("least_squares", "least_squares_symmetric")
"""Those that solve for what the survivors take over."""


def repaired_writer(
    w_DU: Tensor,
    b_D: Tensor | None,
    kept_S: Tensor,
    moments: Moments | None,
    repair: Repair,
    owner: str,
    ridge: float = RIDGE,
) -> tuple[Tensor, Tensor | None]:
    """The writer of the kept units (indices `kept_S`): weights (D, S) and bias (D,), fp64.

    A bias appears where the host has none and there is a constant to carry.
    """
    w_DU = w_DU.double()
    bias_D = None if b_D is None else b_D.double()
    w_DS = w_DU[:, kept_S]
    if repair == "none" or kept_S.numel() == w_DU.shape[1]:
        return w_DS, bias_D
    if moments is None:
        raise UserError(
            f"{owner}: repair '{repair}' needs evidence of what the units give; observe the uncut "
            "model with the kinds in repair_needs(), or use repair 'none'."
        )
    removed = torch.ones(w_DU.shape[1], dtype=torch.bool, device=w_DU.device)
    removed[kept_S] = False
    w_DP, mean_P = w_DU[:, removed], moments.mean_U[removed]
    constant_D = w_DP @ mean_P
    if repair in SOLVED:
        cov_SS = moments.cov_UU[kept_S][:, kept_S]
        cov_SP = moments.cov_UU[kept_S][:, removed]
        b_SP = iterated_solve(cov_SS, cov_SP, ridge, owner)
        w_DS = w_DS + w_DP @ b_SP.T
        constant_D = constant_D - w_DP @ (b_SP.T @ moments.mean_U[kept_S])
    return w_DS, constant_D if bias_D is None else bias_D + constant_D
