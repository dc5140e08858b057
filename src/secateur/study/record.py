"""From the rows of a store to what the page shows.

Legend: S calibration draws (seeds), N evaluation images.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from secateur.report.study_record import (
    Curve,
    ModelRecord,
    OracleRow,
    Point,
    RepairRow,
    ScoreRow,
    Span,
    StudyRecord,
)
from secateur.study.cells import cells_of
from secateur.study.spec import Study
from secateur.study.statistics import Array, Interval, bootstrap, holm, signed_rank, spearman
from secateur.study.store import FAILED, OK, UNREACHABLE, Known, Outcome, Store

CONTROL = "random"
ORACLE = "delta_kl"


def record_of(study: Study, store: Store, rows: Sequence[Known]) -> StudyRecord:
    """The record of the rows of a study that are in its store."""
    dense, latency = store.dense(), store.latency()
    models = tuple(
        _model(study, name, dense[name], rows, latency, store)
        for name in study.models
        if name in dense
    )
    return StudyRecord(
        title=study.title,
        counts=dict(Counter(row.outcome.status for row in rows)),
        cells=len(cells_of(study)),
        models=_corrected(models),
        setting=_setting(study, models),
        unreachable=dict(
            Counter(
                f"{row.cell.structure}, {row.cell.budget}"
                for row in rows
                if row.outcome.status == UNREACHABLE
            )
        ),
        failures={
            row.cell.id: row.outcome.reason or "" for row in rows if row.outcome.status == FAILED
        },
    )


def _model(
    study: Study,
    name: str,
    dense: Outcome,
    rows: Sequence[Known],
    latency: dict[tuple[str, str], dict[str, float]],
    store: Store,
) -> ModelRecord:
    table = _Table(study, name, dense, rows, latency)
    curves = tuple(table.curves())
    runtimes = {(row["runtime"], row["batch"]) for (m, _), row in latency.items() if m == name}
    words = [f"{runtime}, batch {batch}" for runtime, batch in sorted(runtimes)]
    keys = ("macs", "params", "n", "top1", "stderr")
    return ModelRecord(
        name=name,
        source=study.models[name].source,
        dense={key: dense.result.get(key) for key in keys},
        curves=curves,
        best=tuple(_best(study, curves)),
        repairs=tuple(table.repairs()),
        scores=tuple(table.scores()),
        oracle=tuple(_oracle(study, name, store)),
        runtime="; ".join(words) or None,
    )


@dataclass(frozen=True, slots=True)
class _Table:
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

    def curves(self) -> "list[Curve]":
        """Every structure, score and repair with at least one point."""
        found = []
        for structure in self.study.structures:
            for score in self.study.scores:
                for repair in self.study.repair:
                    points = [
                        self._point(budget, draws)
                        for budget in self.study.budgets
                        if (draws := self.draws(structure, score, budget, repair))
                    ]
                    if points:
                        points.sort(key=lambda point: -point.macs)
                        found.append(
                            Curve(
                                structure=structure,
                                score=score,
                                repair=repair,
                                points=tuple(points),
                            )
                        )
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


def _best(study: Study, curves: Sequence[Curve]) -> "list[Curve]":
    """Per structure the curve of least mean KL under the study's last repair, chance left out."""
    by_structure: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        if curve.repair == study.repair[-1] and curve.score != CONTROL:
            by_structure[curve.structure].append(curve)
    best = []
    for own in by_structure.values():
        most = max(len(curve.points) for curve in own)
        whole = [curve for curve in own if len(curve.points) == most]
        best.append(min(whole, key=lambda curve: fmean(p.kl.mean for p in curve.points)))
    return best


def _oracle(study: Study, model: str, store: Store) -> list[OracleRow]:
    """Correlation of every score of single layers with the oracle, draw by draw."""
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for name, seed, structure, score, unit, value in store.scores():
        if name == model and seed in study.seeds:
            values[structure, score].setdefault(seed, {})[unit] = value
    found = []
    for (structure, score), by_seed in values.items():
        oracle = values.get((structure, ORACLE))
        if oracle is None or score == ORACLE or score not in study.scores:
            continue
        rhos = []
        for seed, own in by_seed.items():
            units = [unit for unit in own if unit in oracle.get(seed, {})]
            rho = spearman([own[u] for u in units], [oracle[seed][u] for u in units])
            if rho is not None:
                rhos.append(rho)
        if rhos:
            found.append(
                OracleRow(
                    structure=structure,
                    score=score,
                    layers=len(next(iter(by_seed.values()))),
                    rho=fmean(rhos),
                    low=min(rhos),
                    high=max(rhos),
                )
            )
    return found


def _corrected(models: Sequence[ModelRecord]) -> tuple[ModelRecord, ...]:
    """All p-values of the study, corrected together."""
    repairs = [row for model in models for row in model.repairs]
    scores = [row for model in models for row in model.scores]
    rows: list[RepairRow | ScoreRow] = [*repairs, *scores]
    corrected = holm([row.p for row in rows])
    by_row = {id(row): p for row, p in zip(rows, corrected, strict=True)}
    return tuple(
        replace(
            model,
            repairs=tuple(replace(row, p=by_row[id(row)]) for row in model.repairs),
            scores=tuple(replace(row, p=by_row[id(row)]) for row in model.scores),
        )
        for model in models
    )


def _setting(study: Study, models: Sequence[ModelRecord]) -> dict[str, str]:
    calibration, evaluation = study.calibration, study.evaluation
    limit = calibration.limit or "all"
    images = sorted({f"{model.dense['n']:.0f}" for model in models})
    return {
        "calibration": f"{limit} images of {calibration.data or 'each model'}, drawn "
        f"{len(study.seeds)} times (seeds {', '.join(map(str, study.seeds))})",
        "evaluation": f"{' or '.join(images)} images of {evaluation.data or 'each model'}",
        "scores": ", ".join(study.scores),
        "budgets": ", ".join(study.budgets),
        "repair": ", ".join(study.repair),
        "threads": str(study.threads),
    }


def _stack(draws: Sequence[Outcome], of: Callable[[Outcome], object]) -> Array:
    """(S, N), fp64."""
    return np.stack([np.asarray(of(draw), dtype=np.float64) for draw in draws])


def _span(interval: Interval) -> Span:
    return Span(mean=interval.mean, low=interval.low, high=interval.high)
