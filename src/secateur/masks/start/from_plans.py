"""Scores that start where the `spectral` method would cut: nested plans for falling budgets.

The method's candidates are measured once. Planned for falling shares κ of the dense cost, they give
the size of every group at every κ; within a group, dims go in the order of their axes and neurons
in that of their elimination. A unit is worth 1 - 2 κ with the least κ at which it is still kept, so
that the projection of these scores onto a budget is about the method's own plan for it.

Letters: R rows, U units per row, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from secateur.allocation.candidates import Limits
from secateur.allocation.target import Target
from secateur.criteria.elimination import eliminate
from secateur.data.batches import Batches
from secateur.errors import OutOfReach
from secateur.masks.gates import Gate
from secateur.masks.pricing import Pricing
from secateur.masks.start.by_criterion import average
from secateur.methods.images import Images
from secateur.methods.spectral import measured_candidates, plan_within
from secateur.models.host import Host
from secateur.models.types import Anatomy, GroupName, Shapes
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.progress import Progress
from secateur.statistics import Statistics
from secateur.statistics.moments import moments
from secateur.surgery.solve import RIDGE

SPECTRAL = "spectral"
"""The name of this start, in place of a criterion's."""
SHARES = tuple(i / 40 for i in range(39, 0, -1))
"""The budgets that are planned for, as shares of the dense cost; as far as they are in reach."""
PLANNED: tuple[GroupName, ...] = ("qk", "vo", "hidden", "branch")

Key = tuple[str, GroupName]


def spectral_needs(gates: Iterable[Gate]) -> set[str]:
    """The kinds of statistics that the orders within groups rest on."""
    needs = {"hidden": "hidden_moments", "qk": "logit_moments", "vo": "context_moments"}
    return {needs[act.takes] for gate in gates for act in gate.acts if act.takes in needs}


def spectral_worths(
    host: Host,
    gates: Sequence[Gate],
    pricing: Pricing,
    statistics: Statistics,
    batches: Batches,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The worth of every unit (R, U) of every gate, in [-1, 1].

    `statistics` has `spectral_needs`. Heads are worth most, the channels of a stream are spread
    evenly by their magnitude, and outputs of writers lie in the middle.
    """
    anatomy = host.anatomy
    least = _least_shares(host, gates, pricing, batches, progress)
    answers: dict[Key, Tensor] = {}
    for branch in anatomy.branches:
        weights = host.weights(branch)
        for group in (*branch.groups, "branch"):
            if (branch.id, group) not in least:
                continue
            share_R = least[branch.id, group]
            if group == "branch":
                answers[branch.id, group] = 1 - 2 * share_R[0]
                continue
            ranks = _ranks(group, weights, statistics.about(branch.id), branch.id)
            answers[branch.id, group] = 1 - 2 * share_R[ranks]
    return average(host, gates, answers)


def _least_shares(
    host: Host,
    gates: Sequence[Gate],
    pricing: Pricing,
    batches: Batches,
    progress: Progress | None,
) -> dict[Key, Tensor]:
    """By branch and group, for the unit of each rank the least κ at which it is kept (U,)."""
    anatomy = host.anatomy
    asked = {act.takes for gate in gates for act in gate.acts}
    groups = tuple(g for g in PLANNED if g in asked)
    if not groups:
        return {}
    limits = Limits(protect=pricing.limits.protect)
    images = Images(batches=batches, progress=progress)
    candidates = measured_candidates(host, groups, limits, images).candidates
    plans: list[tuple[float, Shapes]] = []
    for share in SHARES:
        target = Target(cost_of=pricing.cost_of, limit=share * pricing.dense, dense=pricing.dense)
        try:
            plans.append((share, plan_within(anatomy, candidates, target).shapes))
        except OutOfReach:  # as are all that are smaller
            break
    return _nested(anatomy, groups, plans)


def _nested(
    anatomy: Anatomy, groups: Iterable[GroupName], plans: Sequence[tuple[float, Shapes]]
) -> dict[Key, Tensor]:
    """From shapes at falling shares to the least share of every rank, evenly in between."""
    found: dict[Key, Tensor] = {}
    for branch in anatomy.branches:
        for group in groups:
            if group != "branch" and group not in branch.groups:
                continue
            dense = 1 if group == "branch" else branch.shape.size(group)
            least = torch.zeros(dense, dtype=torch.float64)
            above, size = 1.0, dense
            for share, shapes in plans:
                shape = shapes[branch.id]
                now = 0 if shape is None else 1 if group == "branch" else shape.size(group)
                if shape is None and group != "branch":
                    continue
                if now < size:
                    # WHY from above down: ranks go one by one between two plans.
                    least[now:size] = torch.linspace(share, above, size - now + 1)[1:]
                    size = now
                above = share
            if size:
                least[:size] = torch.linspace(0, above, size + 1)[1:].double()
            found[branch.id, group] = least
    return found


def _ranks(
    group: GroupName,
    weights: AttentionWeights | MlpWeights,
    sums: Mapping[str, Mapping[str, Tensor]],
    owner: str,
) -> Tensor:
    """The rank of each unit in its group (F,), or in its head (H, K), 0 for the best."""
    if isinstance(weights, MlpWeights):
        cov_FF = moments(dict(sums["hidden_moments"])).cov_UU
        order_F = eliminate(cov_FF, weights.w2_DF.double().to(cov_FF), RIDGE).order.flip(0)
        return order_F.argsort()
    if group == "qk":
        logits = sums["logit_moments"]
        q_HK, k_HK = (
            logits[name].double().diagonal(dim1=1, dim2=2) for name in ("q_gram", "k_gram")
        )
        energy_HK = q_HK * k_HK
    else:
        heads, dims = weights.v_HVD.shape[:2]
        variance_HV = moments(dict(sums["context_moments"])).cov_UU.diagonal()
        scale_HV = weights.o_DHV.double().square().sum(0).to(variance_HV)
        energy_HK = variance_HV.reshape(heads, dims) * scale_HV
    return energy_HK.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).cpu()
