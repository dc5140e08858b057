"""Drop layers by a criterion that is asked again after each drop, or as one run of blocks."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.allocation.quota import Quota, Unit, dropped_sizes
from secateur.criteria import criteria, score
from secateur.criteria.registry import Question, needs_of
from secateur.data.batches import Batches
from secateur.methods.layer_search.greedy import Found, OnStep, branches_of, open_units
from secateur.methods.task import Task
from secateur.models.caches import copy_of
from secateur.models.family import Family
from secateur.models.types import Anatomy
from secateur.statistics import Evidence, observe

Fills = Mapping[str, Tensor]


def without(
    model: nn.Module, family: Family, anatomy: Anatomy, dropped: frozenset[str], fills: Fills
) -> nn.Module:
    """A copy of the model without some branches, `fills` (D,) in their place."""
    smaller = copy_of(model)
    with torch.no_grad():
        family.drop_(smaller, set(dropped))
        for branch in anatomy.branches:
            if branch.id in dropped and branch.id in fills:
                family.add_constant_(smaller, branch, fills[branch.id])
    return smaller


def iterative(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    units: list[Unit],
    quota: Quota,
    fills: Fills,
    on_step: OnStep,
) -> Found:
    """Drop the unit of least score, look at the smaller model with all images, and so on.

    Siblings of dropped layers keep their place in the stream: the smaller model is run as it is.
    """
    chosen: list[Unit] = []
    scores: list[float] = []
    needs = {
        kind
        for group in task.groups
        for kind in needs_of(criteria.get(task.preset.criterion_for(group)), group)
    }
    while not quota.met(chosen):
        smaller = without(model, family, anatomy, branches_of(chosen), fills)
        evidence = observe(smaller, batches, needs)
        worth = [
            (_score(smaller, family, task, evidence, unit) / _price(quota, chosen, unit, task), i)
            for i, unit in enumerate(units)
            if unit in open_units(units, chosen, quota)
        ]
        least, best = min(worth)
        chosen.append(units[best])
        scores.append(least)
        on_step(len(chosen), len(units))
    return Found(units=tuple(chosen), damages=tuple(scores))


def best_window(
    anatomy: Anatomy, evidence: Evidence, criterion: str, units: list[Unit], quota: Quota
) -> Found:
    """The run of blocks whose ends are most alike, as short as the quota allows (UIDL).

    Of every length the window with the least distance is tried; the distance of n blocks is that
    of the streams before the first and behind the n-th.
    """
    blocks = [block.id for block in anatomy.blocks if block.branches]
    by_id = {unit.key[0]: unit for unit in units}
    for length in range(len(blocks) + 1):
        windows = [
            [by_id[name] for name in blocks[i : i + length]]
            for i in range(len(blocks) - length + 1)
            if all(name in by_id for name in blocks[i : i + length])
        ]
        fitting = [window for window in windows if quota.met(window)]
        if fitting:
            distance = _distances(evidence, criterion, length)
            best = min(fitting, key=lambda window: distance(window))
            return Found(units=tuple(best), damages=(distance(best),) * len(best))
    return Found(units=tuple(open_units(units, units, quota)), damages=())


def _distances(evidence: Evidence, criterion: str, length: int) -> Callable[[list[Unit]], float]:
    def distance(window: list[Unit]) -> float:
        if not window:
            return 0.0
        sums = evidence.of("window_similarity", window[0].key[0])
        mean = float(sums[criterion][length - 1] / sums["count"])
        return 1 - mean if criterion == "cosine" else mean

    return distance


def _score(model: nn.Module, family: Family, task: Task, evidence: Evidence, unit: Unit) -> float:
    owner, group = unit.key
    weights = None
    if group == "branch":
        weights = family.weights(model, family.read(model).branch(owner))
    question = Question(
        group=group,
        owner=owner,
        weights=weights,
        sums=evidence.about(owner),
        images=evidence.images,
        seed=task.options.seed,
    )
    return float(score(criteria.get(task.preset.criterion_for(group)), question))


def _price(quota: Quota, chosen: list[Unit], unit: Unit, task: Task) -> float:
    if quota.cost_of is None or not task.preset.per_cost:
        return 1.0
    saved = quota.cost_of(dropped_sizes(chosen)) - quota.cost_of(dropped_sizes([*chosen, unit]))
    return max(saved, 1e-12)
