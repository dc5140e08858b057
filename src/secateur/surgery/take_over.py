"""Units go in place: what they gave is folded into the weights of those that stay.

The least-squares repair of `secateur.surgery.repair` is applied to weights that keep their dense
shape; columns of what goes become zero. It serves writers while masks on their inputs close, and
the readers of a stream that becomes narrower. For readers the inputs are those behind the norm of
the branch: principal components of the stream as a whole are correlated at single depths, which the
regression finds (derived here).

Legend: D residual width, U inputs, S inputs kept, X outputs of a map in any number of axes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.models.host import Host
from secateur.models.types import Branch
from secateur.models.weights import AttentionWeights, BranchWeights
from secateur.statistics import Statistics, Sums
from secateur.statistics.moments import Moments, moments
from secateur.surgery.repair import taken_over


def take_over(
    weights: BranchWeights, before_U: Tensor, after_U: Tensor, sums: Sums, owner: str
) -> BranchWeights:
    """The weights, inputs of the writer in `before` but not in `after` folded into those in both.

    Columns of all others stay. `sums` are the hidden or context moments of the branch while units
    are live as `before_U` says. A writer without bias keeps none, so its inputs are not centred.
    """
    if isinstance(weights, AttentionWeights):
        w_DU, b_D = weights.o_DHV.flatten(1), weights.ob_D
    else:
        w_DU, b_D = weights.w2_DF, weights.b2_D
    on_site = {name: value.to(w_DU.device) for name, value in sums.items()}
    known = moments(on_site, centred=b_D is not None)
    before_U, after_U = before_U.to(w_DU.device), after_U.to(w_DU.device)
    ((folded_DU, constant_D),) = _folded([w_DU], before_U, after_U, known, owner)
    bias_D = None if b_D is None else b_D.double() + constant_D
    if isinstance(weights, AttentionWeights):
        o_DHV = folded_DU.unflatten(1, weights.v_HVD.shape[:2])
        return replace(weights, o_DHV=o_DHV, ob_D=bias_D)
    return replace(weights, w2_DF=folded_DU, b2_D=bias_D)


@torch.no_grad()
def take_over_(host: Host, branch: Branch, kept_S: Tensor, statistics: Statistics | None) -> None:
    """Fit the readers of a branch to the channels that stay; the shapes do not change yet.

    A reader without a bias loses the constant part. What else reads, such as a gate, is left.
    """
    sums = {} if statistics is None else statistics.about(branch.id)
    if "input_moments" not in sums:
        raise UserError(
            f"the readers of {branch.id} cannot be fitted without evidence of what they read; "
            "observe the uncut model with the kinds in repair_needs(), or use repair 'mean'."
        )
    known = moments(sums["input_moments"])
    all_D = torch.ones_like(known.mean_U, dtype=torch.bool)
    stays_D = torch.zeros_like(all_D)
    stays_D[kept_S.to(stays_D.device)] = True
    old = host.weights(branch)
    new: BranchWeights
    if isinstance(old, AttentionWeights):
        readers = [old.q_HKD, old.k_HKD, old.v_HVD]
        (q, qb), (k, kb), (v, vb) = _folded(readers, all_D, stays_D, known, branch.id)
        new = replace(
            old,
            q_HKD=q,
            k_HKD=k,
            v_HVD=v,
            qb_HK=_shifted(old.qb_HK, qb),
            kb_HK=_shifted(old.kb_HK, kb),
            vb_HV=_shifted(old.vb_HV, vb),
        )
    else:
        found = _folded(old.readers_FD, all_D, stays_D, known, branch.id)
        biases = zip(old.reader_biases_F, found, strict=True)
        new = replace(
            old,
            readers_FD=tuple(w_FD for w_FD, _ in found),
            reader_biases_F=tuple(_shifted(bias_F, shift_F) for bias_F, (_, shift_F) in biases),
        )
    host.assign_(branch, new)


def _folded(
    maps_XU: Sequence[Tensor], before_U: Tensor, after_U: Tensor, known: Moments, owner: str
) -> list[tuple[Tensor, Tensor]]:
    """Each map (..., U) with zeros for what goes, and its constant (...); solved for together."""
    kept_S = (before_U & after_U).nonzero()[:, 0]
    folded_XU = torch.cat([w_XU.double().flatten(0, -2) for w_XU in maps_XU])
    found = taken_over(folded_XU * before_U, kept_S, known, owner)
    folded_XU[:, before_U & ~after_U] = 0
    folded_XU[:, kept_S] = found.w_DS
    sizes = [w_XU[..., 0].numel() for w_XU in maps_XU]
    parts = zip(maps_XU, folded_XU.split(sizes), found.b_D.split(sizes), strict=True)
    return [(w_XU.view_as(old), b_X.view(old.shape[:-1])) for old, w_XU, b_X in parts]


def _shifted(bias_X: Tensor | None, shift_X: Tensor) -> Tensor | None:
    return None if bias_X is None else bias_X.double() + shift_X
