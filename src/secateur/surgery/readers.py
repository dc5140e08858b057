"""Let what reads the stream take over what removed channels told it.

With u what a branch reads behind its norm, kept channels S and removed ones P, u_P is predicted
from u_S by ridge regression on the moments of that very branch,

    u_P = B u_S + c,    W_S <- W_S + W_P B,    W_P <- 0,    b <- b + W_P c,

as `secateur.surgery.repair` does for writers; derived here. Principal components of the stream as a
whole are correlated at single depths, which is what B finds.
Legend: D residual width, S channels kept, P removed, X rows of a reader in any number of axes.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.family import Family
from secateur.models.types import Branch
from secateur.models.weights import AttentionWeights
from secateur.statistics import Evidence
from secateur.surgery.moments import RIDGE, iterated_solve, moments


@torch.no_grad()
def take_over_(
    model: nn.Module, family: Family, branch: Branch, kept_S: Tensor, evidence: Evidence | None
) -> None:
    """Fit the readers of a branch to the channels that stay; the shapes do not change yet.

    A reader without a bias loses the constant part. What else reads, such as a gate, is left.
    """
    sums = {} if evidence is None else evidence.about(branch.id)
    if "input_moments" not in sums:
        raise UserError(
            f"the readers of {branch.id} cannot be fitted without evidence of what they read; "
            "observe the uncut model with the kinds in repair_needs(), or use repair 'mean'."
        )
    seen = moments(sums["input_moments"])
    kept_S = kept_S.to(seen.mean_U.device)
    gone = torch.ones(seen.mean_U.numel(), dtype=torch.bool, device=seen.mean_U.device)
    gone[kept_S] = False
    cov_SS = seen.cov_UU[kept_S][:, kept_S]
    b_PS = iterated_solve(cov_SS, seen.cov_UU[kept_S][:, gone], RIDGE, branch.id).T
    c_P = seen.mean_U[gone] - b_PS @ seen.mean_U[kept_S]

    def fitted(w_XD: Tensor) -> Tensor:
        new_XD = w_XD.double().clone()
        new_XD[..., kept_S] += new_XD[..., gone] @ b_PS
        new_XD[..., gone] = 0
        return new_XD

    def shifted(bias_X: Tensor | None, w_XD: Tensor) -> Tensor | None:
        return None if bias_X is None else bias_X.double() + w_XD.double()[..., gone] @ c_P

    old = family.weights(model, branch)
    if isinstance(old, AttentionWeights):
        new = replace(
            old,
            q_HKD=fitted(old.q_HKD),
            k_HKD=fitted(old.k_HKD),
            v_HVD=fitted(old.v_HVD),
            qb_HK=shifted(old.qb_HK, old.q_HKD),
            kb_HK=shifted(old.kb_HK, old.k_HKD),
            vb_HV=shifted(old.vb_HV, old.v_HVD),
        )
        family.assign_(model, branch, new)
        return
    pairs = zip(old.reader_biases_F, old.readers_FD, strict=True)
    family.assign_(
        model,
        branch,
        replace(
            old,
            readers_FD=tuple(fitted(w_FD) for w_FD in old.readers_FD),
            reader_biases_F=tuple(shifted(bias_F, w_FD) for bias_F, w_FD in pairs),
        ),
    )
