"""Whoever runs cells, here or on another machine: opens what they need once."""

from collections.abc import Callable
from dataclasses import dataclass

from secateur.errors import UserError
from secateur.study.bench import Bench, Host, open_host
from secateur.study.cells import Cell
from secateur.study.run_cell import run_cell
from secateur.study.spec import Study
from secateur.study.store import OK, Outcome

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
        hosts: dict[str, Host] | None = None,
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
        bench, scores = self._bench, []
        if bench is None or (bench.host.name, bench.seed) != (cell.model, cell.seed):
            bench = self._bench = Bench(self._host(cell.model), cell.seed)
            try:
                scores = list(bench.layer_scores())
            except UserError:
                # WHY: the cells that use these scores say what is wrong with them.
                scores = []
        outcome = run_cell(bench, cell, lambda digest: self._known(cell.model, digest))
        if outcome.status == OK and outcome.digest is not None:
            self._seen[cell.model, outcome.digest] = outcome
        return Done(cell=cell, outcome=outcome, scores=scores)

    def _host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = open_host(self._study, name)
        return self._hosts[name]
