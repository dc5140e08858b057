"""The finished cells of one model as curves and paired comparisons.

Legend: S calibration draws (seeds), N evaluation images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import numpy as np

from secateur.report.study_record import Curve, Point, RepairRow, ScoreRow, Span
from secateur.study.spec import Study
from secateur.study.statistics import Array, Interval, bootstrap, signed_rank
from secateur.study.store import OK, Known, Outcome
from secateur.study.structures import OWN

CONTROL = "random"


@dataclass(frozen=True, slots=True)
class Table:
    """The finished cells of one model."""

    study: Study
    model: str
    dense: Outcome
    rows: Sequence[Known]
    latency: dict[tuple[str, str], dict[str, float]]

    def draws(self, structure: str, score: str, budget: str, repair: str) -> list[Outcome]:
        """The outcomes of one place of the grid, in the order of the seeds."""
        found = [
            (row.cell.seed, row.outcome)
            for row in self.rows
            if row.outcome.status == OK
            and (row.cell.model, row.cell.structure, row.cell.score)
            == (self.model, structure, score)
            and (row.cell.budget, row.cell.repair) == (budget, repair)
        ]
        return [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]

    def curves(self) -> list[Curve]:
        """Every structure, score and repair with at least one point."""
        study = self.study
        places: list[tuple[str, str, str]] = [
            *product(study.structures, study.scores, study.repair)
        ]
        places += [(OWN, preset, OWN) for preset in study.presets]
        found = []
        for structure, score, repair in places:
            points = [
                self._point(budget, draws)
                for budget in study.budgets
                if (draws := self.draws(structure, score, budget, repair))
            ]
            if points:
                points.sort(key=lambda point: -point.macs)
                curve = Curve(structure=structure, score=score, repair=repair, points=tuple(points))
                found.append(curve)
        return found

    def _point(self, budget: str, draws: list[Outcome]) -> Point:
        times = [
            self.latency[key]["ratio"]
            for draw in draws
            if (key := (self.model, draw.result["signature"])) in self.latency
        ]
        top1 = lost = None
        if self.dense.correct is not None:
            right_SN = 100 * _stack(draws, lambda draw: draw.correct)
            top1 = _span(bootstrap(right_SN))
            lost = _span(bootstrap(100 * self.dense.correct.astype(np.float64) - right_SN))
        return Point(
            budget=budget,
            macs=fmean(draw.result["macs"] for draw in draws),
            latency=fmean(times) if len(times) == len(draws) else None,
            kl=_span(bootstrap(_stack(draws, lambda draw: draw.kl))),
            top1=top1,
            lost=lost,
            draws=len(draws),
        )

    def repairs(self) -> list[RepairRow]:
        """Each repair against none, at every structure and budget where both are finished."""
        found: list[RepairRow] = []
        if "none" not in self.study.repair:
            return found
        for structure in self.study.structures:
            for budget in self.study.budgets:
                for repair in [repair for repair in self.study.repair if repair != "none"]:
                    pairs = [
                        (self._kl(structure, score, budget, "none"), after)
                        for score in self.study.scores
                        if score != CONTROL
                        and (after := self._kl(structure, score, budget, repair)) is not None
                    ]
                    both = [(a, b) for a, b in pairs if a is not None and a.shape == b.shape]
                    if not both:
                        continue
                    draws = min(len(a) for a, _ in both)
                    before_SN = np.mean([a[:draws] for a, _ in both], axis=0)
                    after_SN = np.mean([b[:draws] for _, b in both], axis=0)
                    found.append(
                        RepairRow(
                            structure=structure,
                            budget=budget,
                            repair=repair,
                            kl_before=float(before_SN.mean()),
                            kl_after=float(after_SN.mean()),
                            saved=_span(bootstrap(before_SN - after_SN)),
                            p=signed_rank((before_SN - after_SN).mean(0)),
                        )
                    )
        return found

    def scores(self) -> list[ScoreRow]:
        """Each score against the control, over the budgets that both have finished."""
        found = []
        for structure in self.study.structures:
            for repair in self.study.repair:
                for score in [score for score in self.study.scores if score != CONTROL]:
                    own, chance = [], []
                    for budget in self.study.budgets:
                        a = self._kl(structure, score, budget, repair)
                        b = self._kl(structure, CONTROL, budget, repair)
                        if a is not None and b is not None and a.shape == b.shape:
                            own.append(a)
                            chance.append(b)
                    if not own:
                        continue
                    draws = min(len(a) for a in own)
                    own_SN = np.mean([a[:draws] for a in own], axis=0)
                    better_SN = np.mean([b[:draws] for b in chance], axis=0) - own_SN
                    found.append(
                        ScoreRow(
                            structure=structure,
                            score=score,
                            repair=repair,
                            kl=float(own_SN.mean()),
                            better=_span(bootstrap(better_SN)),
                            p=signed_rank(better_SN.mean(0)),
                        )
                    )
        return found

    def _kl(self, structure: str, score: str, budget: str, repair: str) -> Array | None:
        draws = self.draws(structure, score, budget, repair)
        return _stack(draws, lambda draw: draw.kl) if draws else None


def _stack(draws: Sequence[Outcome], of: Callable[[Outcome], object]) -> Array:
    """(S, N), fp64."""
    return np.stack([np.asarray(of(draw), dtype=np.float64) for draw in draws])


def _span(interval: Interval) -> Span:
    return Span(mean=interval.mean, low=interval.low, high=interval.high)
