"""Search for whole layers to drop by running the model without them."""

from dataclasses import dataclass

from torch import Tensor, nn

from secateur.ablation.layers import removal
from secateur.allocation.budget import CostBudget
from secateur.allocation.quota import Quota, Unit, dropped_sizes, quota, units_of
from secateur.allocation.target import Target, counted_target, unweighed
from secateur.allocation.types import Plan, shapes_of
from secateur.methods.cutting import cut_copy
from secateur.methods.layer_search.drops import Found
from secateur.methods.layer_search.evolution import evolutionary
from secateur.methods.layer_search.greedy import greedy
from secateur.methods.layer_search.iterative import iterative
from secateur.methods.layer_search.window import best_window
from secateur.methods.method import Job, Prepared
from secateur.methods.task import Task
from secateur.statistics import Statistics
from secateur.surgery.cut import default_replacement, repair_needs
from secateur.surgery.replace import mean_update

IMAGES = {"quick": 32, "full": 128}
"""Images on which degradations are measured, by effort."""
FILLED = ("mean", "affine", "linear")
"""Replacements for which a search leaves the mean in place of what it drops."""
GENERATIONS = {"quick": 4, "full": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Searchable(Prepared):
    """The layers that may go, and the constants (D,) left in their place meanwhile."""

    units: list[Unit]
    fills: dict[str, Tensor]
    statistics: Statistics


class LayerSearch:
    """Drop layers one after the other, or as sets, by the degradation to the whole model."""

    def needs(self, task: Task) -> set[str]:
        """The statistics of the uncut model that a search and its replacements ask for."""
        preset = task.preset
        asked = {"window_similarity"} if preset.search == "window" else set()
        return asked | repair_needs(
            preset.repair, set(task.groups), preset.replacement, rotated=preset.rotate
        )

    def prepare(self, job: Job) -> Searchable:
        """Get ready to search; the work is done by `plan`, once per target."""
        preset, anatomy = job.task.preset, job.anatomy
        statistics = job.images.observe(job.model, self.needs(job.task))
        candidates = unweighed(anatomy, job.task.demand)
        fills: dict[str, Tensor] = {}
        if (preset.replacement or default_replacement(preset.repair)) in FILLED:
            fills = {b.id: mean_update(statistics, b) for b in anatomy.branches}
        return Searchable(
            candidates=candidates,
            dense=job.model,
            units=units_of(anatomy, candidates),
            fills=fills,
            statistics=statistics,
        )

    def plan(self, job: Job, prepared: Searchable, target: Target | None = None) -> Plan:
        """The layers that the search drops."""
        with job.timed("search"):
            found = _find(job, prepared, _quota(job, prepared, target))
        sizes = {entry.key: 1 for entry in prepared.candidates} | dropped_sizes(found.units)
        return Plan(
            shapes=shapes_of(job.anatomy, sizes),
            predicted_loss=found.degradations[-1] if found.degradations else 0.0,
        )

    def cut(self, job: Job, prepared: Searchable, plan: Plan) -> nn.Module:
        """A copy without these layers, with the preset's replacement."""
        return cut_copy(job, prepared.statistics, plan)


def _find(job: Job, prepared: Searchable, wanted: Quota) -> Found:
    task, batches, loss = job.task, job.images.batches, job.images.loss
    preset, effort, units, fills = task.preset, task.request.effort, prepared.units, prepared.fills

    def on_step(done: int, total: int) -> None:
        job.images.say("search", done, total)

    if preset.search == "window":
        return best_window(job.anatomy, prepared.statistics, preset.criterion, units, wanted)
    if preset.search == "iterative":
        return iterative(job, task, batches, units, wanted, fills, on_step, loss)
    criterion = preset.criterion_for(task.groups[0])
    bench = removal(job, batches, IMAGES[effort], fills, criterion, loss)
    found = greedy(bench, units, wanted, per_cost=preset.per_cost, on_step=on_step)
    if preset.search == "greedy":
        return found
    return evolutionary(
        bench,
        units,
        wanted,
        found.units,
        generations=GENERATIONS[effort],
        seed=task.request.seed,
        on_step=on_step,
    )


def _quota(job: Job, prepared: Searchable, target: Target | None) -> Quota:
    budget = job.task.budget
    if not isinstance(budget, CostBudget):
        return quota(prepared.units, budget, None, 0.0)
    target = target or counted_target(job.anatomy, job.task.demand, budget)
    return quota(prepared.units, budget, target.cost_of, target.limit)
