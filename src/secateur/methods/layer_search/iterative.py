"""Drop layers by a criterion that is asked again after each drop."""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.allocation.quota import Quota, Unit
from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import needs_of
from secateur.data.batches import Batches
from secateur.methods.layer_search.drops import (
    Found,
    OnStep,
    branches_of,
    open_units,
    saved_cost,
)
from secateur.methods.task import Task
from secateur.models.caches import copy_of
from secateur.models.host import Host, host_of
from secateur.statistics import Statistics, observe
from secateur.statistics.divergence import LossName

Fills = Mapping[str, Tensor]


def without(host: Host, dropped: frozenset[str], fills: Fills) -> Host:
    """A copy of the model without some branches, `fills` (D,) in their place."""
    smaller = copy_of(host.model)
    with torch.no_grad():
        host.family.drop_(smaller, set(dropped))
        for branch in host.anatomy.branches:
            if branch.id in dropped and branch.id in fills:
                host.family.add_constant_(smaller, branch, fills[branch.id])
    return host_of(smaller)


def iterative(
    host: Host,
    task: Task,
    batches: Batches,
    units: list[Unit],
    quota: Quota,
    fills: Fills,
    on_step: OnStep,
    loss: LossName | None = None,
) -> Found:
    """Drop the unit of least score, look at the smaller model with all images, and so on.

    Siblings of dropped layers keep their place in the stream: the smaller model is run as it is.
    """
    preset = task.preset
    chosen: list[Unit] = []
    scores: list[float] = []
    needs = {
        kind
        for group in task.groups
        for kind in needs_of(
            criteria.get(preset.criterion_for(group)), group, preset.settings_for(group)
        )
    }
    while not quota.met(chosen):
        smaller = without(host, branches_of(chosen), fills)
        statistics = observe(smaller.model, batches, needs, loss=loss)

        def worth_of(
            unit: Unit, smaller: Host = smaller, statistics: Statistics = statistics
        ) -> float:
            owner, group = unit.key
            worth = ask(
                criteria.get(preset.criterion_for(group)),
                smaller,
                group,
                owner,
                statistics,
                seed=task.request.seed,
                settings=preset.settings_for(group),
                numbered=host.anatomy,
            )
            return float(worth) / saved_cost(quota, chosen, unit, per_cost=preset.per_cost)

        open_ = open_units(units, chosen, quota)
        least, best = min((worth_of(unit), i) for i, unit in enumerate(units) if unit in open_)
        chosen.append(units[best])
        scores.append(least)
        on_step(len(chosen), len(units))
    return Found(units=tuple(chosen), degradations=tuple(scores))
