"""Run what of a study is not finished, write every cell down at once, then the page."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.errors import UserError
from secateur.locks import sole
from secateur.progress import Progress
from secateur.report.study_page import render_study
from secateur.request.takes import takes
from secateur.study.bench import StudyHost, open_host
from secateur.study.cells import Cell, cells_of
from secateur.study.latency import measure_latency
from secateur.study.on_ray import run_on_ray
from secateur.study.record import record_of
from secateur.study.spec import Study, at, lines_of, read_study
from secateur.study.store import FAILED, Store, holds_store
from secateur.study.worker import Done, Worker
from secateur.verbs.requests import StudyRequest
from secateur.whole import reason_of, sweep, writing

RESULTS, PAGE = "results.sqlite", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRun:
    """What became of a study: cells by status, the reasons of failed ones, where all is."""

    title: str
    cells: dict[str, int]
    ran: int
    failures: dict[str, str]
    store: Path
    page: Path

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return {
            "title": self.title,
            "cells": self.cells,
            "ran": self.ran,
            "failures": self.failures,
            "store": str(self.store),
            "page": str(self.page),
        }


@takes(StudyRequest)
def run_study(path: Path, out: Path, request: StudyRequest) -> StudyRun:
    """Run the cells of a study file that `out` does not hold yet and write `out/report.html`.

    Finished cells are never run again, whenever the run before was stopped. With `ray` (`local` or
    a cluster's address) cells are spread over workers; else they run in this process. `only_page`
    writes the page from what there is; `models` takes some of the study's models only. UserError
    for a wrong study before any cell is run, and while another process writes to `out`.
    """
    study = read_study(path, request.models)
    jobs, only_page = request.jobs, request.only_page
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}.")
    # WHY not held for the page: it may be wanted while the study runs.
    with nullcontext() if only_page else sole(out):
        begun = holds_store(out / RESULTS)
        if only_page and not begun:
            raise UserError(
                f"there is no store in '{out}' to write a page from; run the study first."
            )
        if (out / PAGE).exists() and not begun:
            raise UserError(f"{out} holds a {PAGE} that is of no study; choose another directory.")
        for name in (RESULTS, PAGE):
            sweep(out / name)
        return _run_alone(path, study, out, request)


def _run_alone(path: Path, study: Study, out: Path, request: StudyRequest) -> StudyRun:
    cells, only_page, progress = cells_of(study), request.only_page, request.progress
    threads = torch.get_num_threads()
    hosts = {} if only_page else _open_hosts(path, study)
    store = Store(out / RESULTS, study.settings(), read_only=only_page)
    ran = 0
    try:
        if not only_page:
            ran = _run(study, cells, store, hosts, request.ray, request.jobs, progress)
            if study.latency is not None:
                measure_latency(store, hosts, study.latency, _step(progress, "latency"))
        wanted = {cell.id for cell in cells}
        rows = [row for row in store.cells() if row.cell.id in wanted]
        _write_whole(out / PAGE, render_study(record_of(study, store, rows)))
    finally:
        store.close()
        torch.set_num_threads(threads)
    failures = {
        row.cell.id: row.outcome.reason or "" for row in rows if row.outcome.status == FAILED
    }
    return StudyRun(
        title=study.title,
        cells=dict(Counter(row.outcome.status for row in rows)),
        ran=ran,
        failures=failures,
        store=out / RESULTS,
        page=out / PAGE,
    )


def _run(
    study: Study,
    cells: list[Cell],
    store: Store,
    hosts: dict[str, StudyHost],
    ray: str | None,
    jobs: int | None,
    progress: Progress | None,
) -> int:
    for name, host in hosts.items():
        store.add_dense(name, host.dense)
    finished = store.finished()
    pending = [cell for cell in cells if cell.id not in finished]
    step = _step(progress, "cells")
    step(len(cells) - len(pending), len(cells))
    if not pending:
        return 0
    if ray is None:
        done = _here(Worker(study, hosts, store.by_digest), pending)
    else:
        done = run_on_ray(study, pending, ray, jobs)
    for number, one in enumerate(done, start=1):
        store.add_scores(one.scores)
        store.add(one.cell, one.outcome)
        step(len(cells) - len(pending) + number, len(cells))
    return len(pending)


def _here(worker: Worker, cells: list[Cell]) -> Iterator[Done]:
    return (worker.run(cell) for cell in cells)


def _open_hosts(path: Path, study: Study) -> dict[str, StudyHost]:
    """All models with their evaluation images, so that wrong names are found before any work."""
    hosts = {}
    for name in study.models:
        try:
            hosts[name] = open_host(study, name)
        except UserError as error:
            where = at(path, lines_of(path), "models", name)
            raise UserError(f"{where}: {error}") from error
    return hosts


def _step(progress: Progress | None, stage: str) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(stage, done, total)

    return step


def _write_whole(path: Path, text: str) -> None:
    try:
        with writing(path) as fresh:
            fresh.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason_of(error)}; the results are kept: mend the cause and "
            "give the same command again."
        ) from error
