"""From the rows of a store to what the page shows."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Literal

from secateur.report.study_record import (
    Curve,
    ModelRecord,
    OracleRow,
    RepairRow,
    ScoreRow,
    StudyRecord,
)
from secateur.study.cells import cells_of
from secateur.study.spec import Study
from secateur.study.statistics import holm, spearman
from secateur.study.store import FAILED, UNREACHABLE, Known, Outcome, Store
from secateur.study.structures import OWN
from secateur.study.table import CONTROL, Table

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
    table = Table(study, name, dense, rows, latency)
    curves = tuple(table.curves())
    own = [row for (model, _), row in latency.items() if model == name]
    runtimes = {(row["runtime"], row["batch"], row.get("clock", "wall")) for row in own}
    words = [
        f"{runtime}, batch {batch}" + (", processor time" if clock == "processor" else "")
        for runtime, batch, clock in sorted(runtimes)
    ]
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
        dense_ms=median(row["dense_ms"] for row in own) if own else None,
    )


def _best(study: Study, curves: Sequence[Curve]) -> list[Curve]:
    """Per structure the curve of least mean KL under the study's last repair, chance left out.

    Presets, which bring their own repair, are one structure here.
    """
    by_structure: dict[str, list[Curve]] = defaultdict(list)
    for curve in curves:
        if curve.repair in (study.repair[-1], OWN) and curve.score != CONTROL:
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
    limit = study.calibration.limit or "all"
    images = sorted({f"{model.dense['n']:.0f}" for model in models})
    return {
        "calibration": f"{limit} images of {_data(study, 'calibration')}, drawn "
        f"{len(study.seeds)} times (seeds {', '.join(map(str, study.seeds))})",
        "evaluation": f"{' or '.join(images)} images of {_data(study, 'evaluation')}",
        "scores": ", ".join(study.scores),
        "budgets": ", ".join(study.budgets),
        "repair": ", ".join(study.repair),
        "threads": str(study.threads),
    }


def _data(study: Study, use: Literal["calibration", "evaluation"]) -> str:
    """Where the images of the models are from."""
    common = getattr(study, use).data
    own = [getattr(model, use) or common for model in study.models.values()]
    return " or ".join(dict.fromkeys(own))
