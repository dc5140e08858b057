"""The engine of presets with a search: whole layers, dropped by looking at what that does."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.ablation.layers import removal
from secateur.allocation.budget import CostBudget
from secateur.allocation.quota import Quota, dropped_sizes, quota, units_of
from secateur.allocation.types import Menu, Plan, shapes_of
from secateur.data.batches import Batches
from secateur.methods.decide import Target, counted_target, unweighed
from secateur.methods.layer_search.drops import Found
from secateur.methods.layer_search.evolution import evolutionary
from secateur.methods.layer_search.greedy import greedy
from secateur.methods.layer_search.iterative import iterative
from secateur.methods.layer_search.window import best_window
from secateur.methods.task import Task
from secateur.models.family import Family
from secateur.models.types import Anatomy
from secateur.progress import Progress
from secateur.statistics import Evidence
from secateur.surgery.cut import default_stand_in
from secateur.surgery.stand_in import mean_update

IMAGES = {"quick": 32, "full": 128}
"""Images on which damages are measured, by effort."""
FILLED = ("mean", "affine", "linear")
"""Stand-ins for which a search leaves the mean in place of what it drops."""
GENERATIONS = {"quick": 4, "full": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The menus of a search and the function from a target to a plan."""

    menus: list[Menu]
    plan_for: Callable[[Target | None], Plan]


def search_needs(task: Task) -> set[str]:
    """The evidence of the uncut model that a search asks for before it begins."""
    if task.preset.search == "window":
        return {"window_similarity"}
    return set()


def search(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    evidence: Evidence,
    progress: Progress | None,
) -> Searched:
    """Get ready to search; the work is done by `plan_for`, once per target."""
    menus = unweighed(anatomy, task)
    units = units_of(anatomy, menus)
    fills: dict[str, Tensor] = {}
    if (task.preset.stand_in or default_stand_in(task.preset.repair)) in FILLED:
        fills = {b.id: mean_update(evidence, b) for b in anatomy.branches}

    def on_step(done: int, total: int) -> None:
        if progress is not None:
            progress("search", done, total)

    def find(wanted: Quota) -> Found:
        preset, effort = task.preset, task.options.effort
        if preset.search == "window":
            return best_window(anatomy, evidence, preset.criterion, units, wanted)
        if preset.search == "iterative":
            return iterative(model, family, anatomy, task, batches, units, wanted, fills, on_step)
        criterion = preset.criterion_for(task.groups[0])
        bench = removal(model, family, anatomy, batches, IMAGES[effort], fills, criterion)
        found = greedy(bench, units, wanted, per_cost=preset.per_cost, on_step=on_step)
        if preset.search == "greedy":
            return found
        return evolutionary(
            bench,
            units,
            wanted,
            found.units,
            generations=GENERATIONS[effort],
            seed=task.options.seed,
            on_step=on_step,
        )

    def plan_for(target: Target | None) -> Plan:
        found = find(_quota(anatomy, task, menus, target))
        sizes = {menu.key: 1 for menu in menus} | dropped_sizes(found.units)
        return Plan(
            shapes=shapes_of(anatomy, sizes),
            predicted_loss=found.damages[-1] if found.damages else 0.0,
        )

    return Searched(menus=menus, plan_for=plan_for)


def _quota(anatomy: Anatomy, task: Task, menus: list[Menu], target: Target | None) -> Quota:
    units = units_of(anatomy, menus)
    if not isinstance(task.budget, CostBudget):
        return quota(units, task.budget, None, 0.0)
    target = target or counted_target(anatomy, task, task.budget)
    return quota(units, task.budget, target.cost_of, target.limit)
