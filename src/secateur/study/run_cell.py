"""From a cell to its outcome; whatever goes wrong becomes a row with its reason."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress

from secateur.allocation.target import check_reachable
from secateur.allocation.types import Plan
from secateur.errors import OutOfReach, UserError
from secateur.measurement.within import require_within
from secateur.methods.by_preset import method_of
from secateur.methods.tail import with_tail
from secateur.methods.task import Task, planned
from secateur.models.sharing import refuse_shared
from secateur.statistics.anchors import Run
from secateur.study.bench import Bench, finish
from secateur.study.cells import Cell, cells_of
from secateur.study.store import FAILED, UNREACHABLE, Outcome
from secateur.study.structures import OWN
from secateur.study.tasks import task_of
from secateur.surgery.replace import runs_of


def run_cell(bench: Bench, cell: Cell, known: Callable[[str], Outcome | None]) -> Outcome:
    """Prune and evaluate; `known(digest)` gives what is known of equal weights.

    A budget out of reach is an outcome too. Only what stops the program is raised.
    """
    try:
        return _run(bench, cell, known)
    except OutOfReach as error:
        return Outcome(status=UNREACHABLE, reason=str(error))
    except UserError as error:
        return Outcome(status=FAILED, reason=str(error))
    except Exception as error:  # one broken cell must not stop the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.name}, line {place.lineno}"
        return Outcome(status=FAILED, reason=f"{type(error).__name__}: {error} ({where})")


def _run(bench: Bench, cell: Cell, known: Callable[[str], Outcome | None]) -> Outcome:
    host = bench.host
    task = task_of(cell, host)
    refuse_shared(host, task.groups)
    method_of(task).needs(task)
    check_reachable(planned(host, task).anatomy, task.demand)
    _ = bench.statistics
    started = time.perf_counter()
    plan = _plan(bench, task)
    if task.preset.replacement == "affine" and not bench.images.known_runs:
        bench.images.learn_runs(set(_expected_runs(bench)))
    job = bench.job(task)
    smaller = with_tail(job, method_of(task).cut(job, bench.prepared(job), plan))
    require_within(smaller, host.anatomy, task.budget, cell.budget)
    return finish(bench, smaller, plan.predicted_loss, started, known)


def _plan(bench: Bench, task: Task) -> Plan:
    job = bench.job(task)
    return method_of(task).plan(job, bench.prepared(job))


def _expected_runs(bench: Bench) -> Iterator[Run]:
    """What all cells of this model and draw will ask for, so that one pass gives it.

    Searches are left out, since they are slow to plan, and so are cells that fail: each says why
    when its turn comes.
    """
    host = bench.host
    for cell in cells_of(host.study):
        if (cell.model, cell.seed) != (host.name, bench.seed) or cell.structure == OWN:
            continue
        task = task_of(cell, host)
        if task.preset.replacement == "affine" and task.preset.search == "one_shot":
            with suppress(Exception):
                check_reachable(planned(host, task).anatomy, task.demand)
                yield from runs_of(host.anatomy, _plan(bench, task).shapes).items()
