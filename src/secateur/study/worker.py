"""Whoever runs cells, here or on another machine: opens what they need once."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from secateur.study.bench import Bench, StudyHost, open_host
from secateur.study.cells import Cell
from secateur.study.run_cell import run_cell
from secateur.study.spec import Study
from secateur.study.store import OK, Outcome
from secateur.study.structures import SEARCHES

ScoreRow = tuple[str, int, str, str, str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A cell's outcome, and the scores of single layers if its calibration images were new."""

    cell: Cell
    outcome: Outcome
    scores: list[ScoreRow]


class Worker:
    """Runs the cells of a study one by one; neighbours with equal model and seed share all."""

    def __init__(
        self,
        study: Study,
        hosts: dict[str, StudyHost] | None = None,
        known: Callable[[str, str], Outcome | None] | None = None,
    ) -> None:
        """`known(model, digest)` looks equal weights up; without it, only own results count."""
        self._study = study
        self._hosts = {} if hosts is None else hosts
        self._bench: Bench | None = None
        self._seen: dict[tuple[str, str], Outcome] = {}
        self._known = known or (lambda model, digest: self._seen.get((model, digest)))

    def run(self, cell: Cell) -> Done:
        """Run one cell."""
        bench = self._bench
        scores: list[ScoreRow] = []
        if bench is None or (bench.host.name, bench.seed) != (cell.model, cell.seed):
            bench = self._bench = Bench(self._host(cell.model), cell.seed)
            scores = _layer_scores(bench)
        outcome = run_cell(bench, cell, lambda digest: self._known(cell.model, digest))
        if outcome.status == OK and outcome.digest is not None:
            self._seen[cell.model, outcome.digest] = outcome
        return Done(cell=cell, outcome=outcome, scores=scores)

    def _host(self, name: str) -> StudyHost:
        if name not in self._hosts:
            self._hosts[name] = open_host(self._study, name)
        return self._hosts[name]


def _layer_scores(bench: Bench) -> list[ScoreRow]:
    """The scores of single layers; of a score that fails, its cells say why."""
    found: list[ScoreRow] = []
    for name in bench.host.study.scores:
        if name not in SEARCHES:
            with suppress(Exception):
                found += bench.layer_scores(name)
    return found
