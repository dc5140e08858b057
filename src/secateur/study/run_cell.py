"""From a cell to its outcome; whatever goes wrong becomes a row with its reason."""

import copy
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress

from torch import nn

from secateur.allocation.types import Plan
from secateur.errors import UserError
from secateur.methods.by_score import plan_of, weigh
from secateur.methods.decide import check_reachable, decide
from secateur.methods.layer_search.search import search
from secateur.methods.task import Task
from secateur.statistics.anchors import Run
from secateur.study.bench import Bench, finish
from secateur.study.cells import Cell, cells_of
from secateur.study.store import FAILED, UNREACHABLE, Outcome
from secateur.study.tasks import task_of
from secateur.surgery.cut import cut_
from secateur.surgery.stand_in import runs_of


def run_cell(bench: Bench, cell: Cell, known: Callable[[str], Outcome | None]) -> Outcome:
    """Prune and evaluate; `known(digest)` gives what is known of equal weights.

    A budget out of reach is an outcome too. Only what stops the program is raised.
    """
    try:
        return _run(bench, cell, known)
    except UserError as error:
        status = UNREACHABLE if "out of reach" in str(error) else FAILED
        return Outcome(status=status, reason=str(error))
    except Exception as error:  # one broken cell must not stop the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.name}, line {place.lineno}"
        return Outcome(status=FAILED, reason=f"{type(error).__name__}: {error} ({where})")


def _run(bench: Bench, cell: Cell, known: Callable[[str], Outcome | None]) -> Outcome:
    host = bench.host
    task = task_of(cell, host.family, host.model, host.anatomy)
    check_reachable(host.anatomy, task)
    _ = bench.evidence
    started = time.perf_counter()
    plan = _plan(bench, task)
    smaller = _cut(bench, task, plan)
    return finish(bench, smaller, plan.predicted_loss, started, known)


def _plan(bench: Bench, task: Task) -> Plan:
    host = bench.host
    if task.preset.search != "one_shot":
        searched = search(
            host.model, host.family, host.anatomy, task, bench.calibration, bench.evidence, None
        )
        return searched.plan_for(None)
    weighed = weigh(host.model, host.family, host.anatomy, task, bench.evidence)
    return plan_of(host.anatomy, weighed, decide(host.anatomy, weighed.menus, task))


def _cut(bench: Bench, task: Task, plan: Plan) -> nn.Module:
    smaller = copy.deepcopy(bench.host.model)
    anchors = {}
    if task.preset.stand_in == "affine":
        if not bench.known_runs:
            bench.learn_runs(set(_expected_runs(bench)))
        anchors = bench.anchors(runs_of(bench.host.anatomy, plan.shapes))
    cut_(smaller, plan, bench.evidence, task.preset.repair, task.preset.stand_in, anchors)
    return smaller


def _expected_runs(bench: Bench) -> Iterator[Run]:
    """What all cells of this model and draw will ask for, so that one pass gives it.

    Searches are left out, since they are slow to plan, and so are cells that fail: each says why
    when its turn comes.
    """
    host = bench.host
    for cell in cells_of(host.study):
        if (cell.model, cell.seed) != (host.name, bench.seed):
            continue
        task = task_of(cell, host.family, host.model, host.anatomy)
        if task.preset.stand_in == "affine" and task.preset.search == "one_shot":
            with suppress(Exception):
                check_reachable(host.anatomy, task)
                yield from runs_of(host.anatomy, _plan(bench, task).shapes).items()
