"""Reduction by selection: keep a subset of units, as a slice of every tensor that knows them.

Legend: D residual width, H heads, K query/key dims, V value dims per head, F hidden neurons.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.allocation.types import Units
from secateur.models.types import GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Sums
from secateur.statistics.moments import Moments
from secateur.surgery.repair import SOLVED, Repair, compensate_logits, repaired_writer

UnitsByGroup = Mapping[GroupName, Units]


def select(
    weights: BranchWeights,
    units: UnitsByGroup,
    moments: Moments | None,
    repair: Repair,
    owner: str,
    logits: Sums | None = None,
) -> BranchWeights:
    """The weights of the kept units, their writer repaired from `moments` of what it reads.

    With a repair that solves and `logits`, the branch's `logit_moments`, kept query/key dims take
    over what removed ones gave to the logits.
    """
    if isinstance(weights, MlpWeights):
        return _select_hidden(weights, units, moments, repair, owner)
    smaller = _select_dims(weights, units, moments, repair, owner)
    if repair in SOLVED and logits is not None and "qk" in units:
        heads_H, qk_HK = _kept_dims(weights, units, "qk")
        symmetric = repair == "least_squares_symmetric"
        return compensate_logits(smaller, logits, heads_H, qk_HK, owner, symmetric=symmetric)
    return smaller


def _select_hidden(
    weights: MlpWeights,
    units: UnitsByGroup,
    moments: Moments | None,
    repair: Repair,
    owner: str,
) -> MlpWeights:
    if "hidden" not in units:
        return weights
    kept_F = torch.tensor(units["hidden"], dtype=torch.long, device=weights.w2_DF.device)
    w2_DF, b2_D = repaired_writer(weights.w2_DF, weights.b2_D, kept_F, moments, repair, owner)
    return MlpWeights(
        readers_FD=tuple(w[kept_F] for w in weights.readers_FD),
        reader_biases_F=tuple(None if b is None else b[kept_F] for b in weights.reader_biases_F),
        w2_DF=w2_DF,
        b2_D=b2_D,
        unit_FT=None if weights.unit_FT is None else weights.unit_FT[kept_F],
    )


def _select_dims(
    weights: AttentionWeights,
    units: UnitsByGroup,
    moments: Moments | None,
    repair: Repair,
    owner: str,
) -> AttentionWeights:
    heads_H, qk_HK = _kept_dims(weights, units, "qk")
    _, vo_HV = _kept_dims(weights, units, "vo")
    kept_S = (heads_H[:, None] * weights.shape.vo + vo_HV).flatten()
    o_DS, ob_D = repaired_writer(
        weights.o_DHV.flatten(1), weights.ob_D, kept_S, moments, repair, owner
    )
    rows = heads_H[:, None]

    def bias(full: Tensor | None, index: Tensor) -> Tensor | None:
        return None if full is None else full[rows, index]

    return AttentionWeights(
        q_HKD=weights.q_HKD[rows, qk_HK],
        k_HKD=weights.k_HKD[rows, qk_HK],
        v_HVD=weights.v_HVD[rows, vo_HV],
        o_DHV=o_DS.unflatten(1, (heads_H.numel(), -1)),
        qb_HK=bias(weights.qb_HK, qk_HK),
        kb_HK=bias(weights.kb_HK, qk_HK),
        vb_HV=bias(weights.vb_HV, vo_HV),
        ob_D=ob_D,
        scale=weights.scale,
        table_HT=None if weights.table_HT is None else weights.table_HT[heads_H],
        places_NN=weights.places_NN,
    )


def _kept_dims(
    weights: AttentionWeights, units: UnitsByGroup, group: GroupName
) -> tuple[Tensor, Tensor]:
    """Kept heads (H,), and of each the kept dims of a group (H, dims)."""
    device, shape = weights.q_HKD.device, weights.shape
    heads_H = _index(units.get("heads", tuple(range(shape.heads))), device)
    return heads_H, _per_head(units.get(group), heads_H, shape.size(group))


def _index(units: Units, device: torch.device) -> Tensor:
    return torch.tensor(units, dtype=torch.long, device=device)


def _per_head(units: Units | None, heads_H: Tensor, size: int) -> Tensor:
    """Kept dims (kept heads, kept dims) from one tuple per dense head; all dims without any."""
    if units is None:
        return torch.arange(size, device=heads_H.device).expand(heads_H.numel(), size)
    return _index(units, heads_H.device)[heads_H]
