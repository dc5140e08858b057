"""Budgets in milliseconds: plan with a table of timings, measure what came of it, correct.

A table predicts well which of two models is faster, and less well how fast a whole model is. So
the pruned model is timed in turns with the dense one, and the limit given to the solver is
corrected by measured over predicted time. A model whose measured time misses the budget by more
than a tolerance is not handed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.allocation.budget import CostBudget
from secateur.allocation.candidates import least_sizes
from secateur.allocation.target import Target, check_reachable, unweighed
from secateur.allocation.types import GROUPS_OF, Plan, Sizes
from secateur.errors import OutOfReach
from secateur.measurement.latency import Row, bench
from secateur.measurement.layer_table import LayerTable, Setting, latency_cost, layer_table
from secateur.methods.task import Task
from secateur.models.host import Host
from secateur.models.types import Anatomy, Shapes
from secateur.request.parts import TimingPart

ROUNDS = 3
MORE = 3
"""Further rounds where no model of the first was within the limit."""
VERDICTS = 3
"""How often the fastest model is timed again where none was within the limit."""
TOLERANCE = 0.05
"""Share of the limit by which a time may miss it, since times of equal models differ as much."""
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


def setting_of(model: nn.Module, timing: TimingPart) -> Setting:
    """Where a latency budget counts."""
    return Setting(
        runtime=timing.runtime,
        device=str(next(model.parameters()).device),
        batch_size=timing.latency_batch,
        threads=torch.get_num_threads(),
    )


def latency_target(
    host: Host, task: Task, progress: Callable[[str, int, int], None] | None = None
) -> Target | None:
    """What the table of this machine predicts, and the first limit; None for other budgets.

    Times every kind of branch unless a table is kept from before. UserError when the runtime
    cannot be used, and when the smallest model is predicted to take longer than the budget.
    """
    budget, anatomy = task.budget, host.anatomy
    if not isinstance(budget, CostBudget) or not times_count(task):
        return None
    sizes = {entry.key: entry.sizes for entry in unweighed(anatomy, task.demand)}
    setting = setting_of(host.model, task.request)
    table = layer_table(host, setting, sizes, progress=progress)
    target = _target(anatomy, budget, table)
    try:
        check_reachable(anatomy, task.demand, target)
    except OutOfReach:
        if not table.recalled:
            raise
        # WHY: the times kept may be those of a busy machine, or no times at all.
        table = layer_table(host, setting, sizes, fresh=True, progress=progress)
        target = _target(anatomy, budget, table)
        check_reachable(anatomy, task.demand, target)
    return target


def _target(anatomy: Anatomy, budget: CostBudget, table: LayerTable) -> Target:
    limit = limit_ms(budget, dense_ms=table.dense_ms)
    return Target(cost_of=latency_cost(anatomy, table), limit=limit, dense=table.dense_ms)


def limit_ms(budget: CostBudget, dense_ms: float) -> float:
    """The most milliseconds that a budget allows beside a dense model of `dense_ms`."""
    return budget.amount * dense_ms if budget.relative else budget.amount


def cut_to_latency(
    dense: Host,
    task: Task,
    target: Target,
    plan_for: Callable[[Target], Plan],
    cut: Callable[[Plan], nn.Module],
) -> LatencyCut:
    """Plan, cut and measure until the time is within the limit and near it.

    That takes at most three rounds, and three more where no model is within the limit. Of the
    models within it the least pruned is kept. Where there is none, the fastest is measured again;
    it is kept, with a note, where it misses by no more than the tolerance, and otherwise UserError
    says by how much.
    """
    anatomy, setting = dense.anatomy, setting_of(dense.model, task.request)
    least = target.cost_of(least_sizes(unweighed(anatomy, task.demand)))
    rounds: list[LatencyRound] = []
    tried: list[Shapes] = []
    kept: tuple[LatencyRound, nn.Module, Plan, list[Row]] | None = None
    aim: float | None = target.limit
    while aim is not None and len(rounds) < (
        ROUNDS if kept is not None and kept[0].use <= 1 else ROUNDS + MORE
    ):
        plan = plan_for(replace(target, limit=aim))
        if plan.shapes in tried:
            break
        tried.append(plan.shapes)
        model = cut(plan)
        predicted = target.cost_of(_sizes(anatomy, plan.shapes))
        rows = _measured(dense, model, setting)
        this = _round(task, rows, aim=aim, predicted=predicted)
        rounds.append(this)
        if kept is None or _rank(this) < _rank(kept[0]):
            kept = (this, model, plan, rows)
        aim = _next_aim(this, least, nothing_removed=plan.shapes == anatomy.shapes)
        if aim is not None and this.use > 1 and len(rounds) >= max(ROUNDS, 2):
            aim = max(min(aim, MARGIN * _on_a_line(*rounds[-2:])), least)
    if kept is None:
        raise RuntimeError("no round was measured")
    best, model, plan, rows = kept
    if best.use > 1:
        best, rows = _measured_again(dense, model, task, best)
        if best.use > 1 + TOLERANCE:
            raise OutOfReach(_refusal(task, best, rounds, setting))
    return LatencyCut(
        model=model,
        plan=plan,
        best=best,
        rounds=tuple(rounds),
        rows=[row.to_json() for row in rows],
        note=_note(best, rounds, setting),
    )


def _measured(dense: Host, pruned: nn.Module, setting: Setting) -> list[Row]:
    return bench(
        {"dense": dense.model, "pruned": pruned},
        dense.anatomy.input_size,
        runtimes=(setting.runtime,),
        batch_sizes=(setting.batch_size,),
        max_seconds=SECONDS,
        device=setting.device,
    )


def _measured_again(
    dense: Host, pruned: nn.Module, task: Task, best: LatencyRound
) -> tuple[LatencyRound, list[Row]]:
    """The round of a model with the middle one of several further measurements, and its rows."""
    setting = setting_of(dense.model, task.request)
    found = []
    for _ in range(VERDICTS):
        rows = _measured(dense, pruned, setting)
        again = _round(task, rows, aim=best.aim_ms, predicted=best.predicted_ms)
        found.append((again, rows))
    return sorted(found, key=lambda one: one[0].use)[VERDICTS // 2]


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


def _on_a_line(before: LatencyRound, last: LatencyRound) -> float:
    """The prediction at which the line through two rounds meets the limit; 0 if it falls nowhere.

    Where much of a model's time stays whatever is removed, measured over predicted time corrects
    too little, over and over again.
    """
    rise = (last.use - before.use) / ((last.predicted_ms - before.predicted_ms) or 1.0)
    return last.predicted_ms - (last.use - 1) / rise if rise > 0 else 0.0


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
    reached = f"{_reached(best)} ({_story(rounds)})"
    if best.use <= 1:
        return f"Latency ({setting}): {reached}."
    return (
        f"Latency ({setting}): the limit is missed by {100 * (best.use - 1):.1f} %, within the "
        f"tolerance of {100 * TOLERANCE:g} % for measured times: {reached}. This is the fastest "
        "model of these rounds."
    )


def _refusal(
    task: Task, best: LatencyRound, rounds: Sequence[LatencyRound], setting: Setting
) -> str:
    return (
        f"budget '{task.request.goal}' is missed by {100 * (best.use - 1):.1f} % ({setting}), "
        f"more than the tolerance of {100 * TOLERANCE:g} % for measured times: {_reached(best)}, "
        f"the middle one of {VERDICTS} measurements of the fastest model ({_story(rounds)}); raise "
        "the budget, allow more groups or smaller widths, or run again when the machine is less "
        "busy."
    )


def _reached(best: LatencyRound) -> str:
    return (
        f"measured {best.measured_ms:.3g} ms of at most {best.limit_ms:.3g} ms, dense "
        f"{best.dense_ms:.3g} ms"
    )


def _story(rounds: Sequence[LatencyRound]) -> str:
    return "; ".join(
        f"round {number}: predicted {one.predicted_ms:.3g} ms, measured {one.measured_ms:.3g} ms"
        for number, one in enumerate(rounds, start=1)
    )
