"""Budgets in milliseconds: plan with a table of timings, measure what came of it, correct.

A table predicts well which of two models is faster, and less well how fast a whole model is. So
the pruned model is timed in turns with the dense one, and the limit given to the solver is
corrected by measured over predicted time.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.allocation.budget import CostBudget
from secateur.allocation.menus import least_sizes
from secateur.allocation.target import Target, check_reachable, unweighed
from secateur.allocation.types import GROUPS_OF, Plan, Sizes
from secateur.measurement.latency import Row, bench
from secateur.measurement.layer_table import Setting, latency_cost, layer_table
from secateur.methods.task import Options, Task
from secateur.models.family import Family
from secateur.models.types import Anatomy, Shapes

ROUNDS = 3
SLACK = 0.05
"""Share of the limit that may stay unused before more is given back."""
MARGIN = 0.98
"""How far below the corrected limit to aim after the limit was missed."""
SECONDS = 3.0
"""How long dense and pruned model take turns at least, in each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRound:
    """One model that was planned, cut and timed: all in ms, measured ones medians.

    `aim_ms` is what the solver was allowed, `limit_ms` what the budget allows.
    """

    aim_ms: float
    predicted_ms: float
    measured_ms: float
    dense_ms: float
    limit_ms: float

    @property
    def use(self) -> float:
        """Measured time as a share of the limit; above 1 it is missed."""
        return self.measured_ms / self.limit_ms

    def to_json(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCut:
    """The best model of all rounds, the round it is from, and its timings beside the dense one."""

    model: nn.Module
    plan: Plan
    best: LatencyRound
    rounds: tuple[LatencyRound, ...]
    rows: list[dict[str, Any]]
    note: str


def times_count(task: Task) -> bool:
    """Whether the budget is one in milliseconds."""
    return isinstance(task.budget, CostBudget) and task.budget.unit == "ms"


def setting_of(model: nn.Module, options: Options) -> Setting:
    """Where a latency budget counts."""
    return Setting(
        runtime=options.runtime,
        device=str(next(model.parameters()).device),
        batch_size=options.latency_batch,
        threads=torch.get_num_threads(),
    )


def latency_target(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    progress: Callable[[str, int, int], None] | None = None,
) -> Target | None:
    """What the table of this machine predicts, and the first limit; None for other budgets.

    Times every kind of branch unless a table is kept from before. UserError when the runtime
    cannot be used, and when the smallest model is predicted to take longer than the budget.
    """
    budget = task.budget
    if not isinstance(budget, CostBudget) or not times_count(task):
        return None
    sizes = {menu.key: menu.sizes for menu in unweighed(anatomy, task.demand)}
    setting = setting_of(model, task.options)
    table = layer_table(model, family, anatomy, setting, sizes, progress=progress)
    limit = limit_ms(budget, dense_ms=table.dense_ms)
    target = Target(cost_of=latency_cost(anatomy, table), limit=limit)
    check_reachable(anatomy, task.demand, target)
    return target


def limit_ms(budget: CostBudget, dense_ms: float) -> float:
    """The most milliseconds that a budget allows beside a dense model of `dense_ms`."""
    return budget.amount * dense_ms if budget.relative else budget.amount


def cut_to_latency(
    dense: nn.Module,
    anatomy: Anatomy,
    task: Task,
    target: Target,
    plan_for: Callable[[Target], Plan],
    cut: Callable[[Plan], nn.Module],
) -> LatencyCut:
    """Plan, cut and measure, at most three times, until the time is within the limit and near it.

    Of the models within the limit the least pruned is kept; when there is none, the fastest,
    with a note that says by how much it misses.
    """
    setting = setting_of(dense, task.options)
    least = target.cost_of(least_sizes(unweighed(anatomy, task.demand)))
    rounds: list[LatencyRound] = []
    tried: list[Shapes] = []
    kept: tuple[LatencyRound, nn.Module, Plan, list[Row]] | None = None
    aim: float | None = target.limit
    while aim is not None and len(rounds) < ROUNDS:
        plan = plan_for(replace(target, limit=aim))
        if plan.shapes in tried:
            break
        tried.append(plan.shapes)
        model = cut(plan)
        predicted = target.cost_of(_sizes(anatomy, plan.shapes))
        rows = _measured(dense, model, anatomy, setting)
        this = _round(task, rows, aim=aim, predicted=predicted)
        rounds.append(this)
        if kept is None or _rank(this) < _rank(kept[0]):
            kept = (this, model, plan, rows)
        aim = _next_aim(this, least, nothing_removed=plan.shapes == anatomy.shapes)
    if kept is None:
        raise RuntimeError("no round was measured")
    best, model, plan, rows = kept
    return LatencyCut(
        model=model,
        plan=plan,
        best=best,
        rounds=tuple(rounds),
        rows=[row.to_json() for row in rows],
        note=_note(best, rounds, setting),
    )


def _measured(dense: nn.Module, pruned: nn.Module, anatomy: Anatomy, setting: Setting) -> list[Row]:
    return bench(
        {"dense": dense, "pruned": pruned},
        anatomy.input_size,
        runtimes=(setting.runtime,),
        batch_sizes=(setting.batch_size,),
        max_seconds=SECONDS,
        device=setting.device,
    )


def _round(task: Task, rows: Sequence[Row], *, aim: float, predicted: float) -> LatencyRound:
    times = {row.model: row.latency.median_ms for row in rows}
    if not isinstance(task.budget, CostBudget):
        raise TypeError("only a cost budget has a limit in ms")
    return LatencyRound(
        aim_ms=aim,
        predicted_ms=predicted,
        measured_ms=times["pruned"],
        dense_ms=times["dense"],
        limit_ms=limit_ms(task.budget, dense_ms=times["dense"]),
    )


def _rank(this: LatencyRound) -> tuple[bool, float]:
    """Less is better: within the limit, and then as little pruned as possible; else fast."""
    return (False, -this.predicted_ms) if this.use <= 1 else (True, this.use)


def _next_aim(this: LatencyRound, least: float, *, nothing_removed: bool) -> float | None:
    """The solver's next limit; None when this round will do."""
    corrected = this.predicted_ms / this.use
    if this.use > 1:
        return max(MARGIN * corrected, least)
    if nothing_removed or this.use >= 1 - SLACK:
        return None
    return corrected


def _sizes(anatomy: Anatomy, shapes: Shapes) -> Sizes:
    """Sizes that lead to these shapes."""
    sizes: Sizes = {}
    for branch in anatomy.branches:
        shape = shapes[branch.id]
        if shape is None:
            sizes[branch.id, "branch"] = 0
        else:
            sizes |= {(branch.id, group): shape.size(group) for group in GROUPS_OF[branch.kind]}
    return sizes


def _note(best: LatencyRound, rounds: Sequence[LatencyRound], setting: Setting) -> str:
    story = "; ".join(
        f"round {number}: predicted {one.predicted_ms:.3g} ms, measured {one.measured_ms:.3g} ms"
        for number, one in enumerate(rounds, start=1)
    )
    reached = (
        f"measured {best.measured_ms:.3g} ms of at most {best.limit_ms:.3g} ms, dense "
        f"{best.dense_ms:.3g} ms ({story})"
    )
    if best.use <= 1:
        return f"Latency ({setting}): {reached}."
    return (
        f"Latency ({setting}): the limit is missed by {100 * (best.use - 1):.1f} %: {reached}. "
        "This is the fastest model of these rounds; allow more groups or smaller widths, or run "
        "again when the machine is less busy."
    )
