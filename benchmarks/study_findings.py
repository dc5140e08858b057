"""Write docs/results/NAME.md from the store of a study: its findings, each with its interval.

`python benchmarks/study_findings.py benchmarks/NAME.yaml --out DIR`, after
`secateur study benchmarks/NAME.yaml --out DIR`; with `--models` and `--name`, a page about some of
its models.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from _common import table, versions, write_page
from _study_claims import UNITS, beside_oracle_rows, claims, plot, rate_rows

from secateur.report.study_figures import NAMES
from secateur.report.study_record import ModelRecord, Span, StudyRecord
from secateur.study.cells import cells_of
from secateur.study.record import record_of
from secateur.study.runner import RESULTS
from secateur.study.spec import read_study
from secateur.study.store import Known, Store
from secateur.study.table import Table


def main() -> None:
    given = argparse.ArgumentParser(description="The findings of a study as a page.")
    given.add_argument("study", type=Path)
    given.add_argument("--out", type=Path, required=True, help="the directory of the study")
    given.add_argument("--time", action="store_true", help="tell latencies (of a quiet machine)")
    given.add_argument("--models", help="only these of its models, with commas between them")
    given.add_argument("--name", help="name of the page (default: that of the study file)")
    args = given.parse_args()
    name = args.name or args.study.stem
    study = read_study(args.study, args.models.split(",") if args.models else None)
    store = Store(args.out / RESULTS, study.settings())
    wanted = {cell.id for cell in cells_of(study)}
    rows = [row for row in store.cells() if row.cell.id in wanted]
    record = record_of(study, store, rows)
    if not args.time:
        record = replace(record, models=tuple(replace(m, dense_ms=None) for m in record.models))
    picture = plot(record.models, name)
    names = ", ".join(model.name for model in record.models)
    parts = [
        f"# {record.title}: {names}",
        _lead(record),
        f"![Degradation by structure]({picture.name})",
    ]
    for model in record.models:
        own = Table(study, model.name, store.dense()[model.name], rows, store.latency())
        parts += [f"## {model.name}"] if len(record.models) > 1 else []
        parts += _model(model, own, time=args.time)
    parts.append(_how(args, name, rows))
    store.close()
    write_page(name, "\n\n".join(parts))


def _how(args: argparse.Namespace, name: str, rows: list[Known]) -> str:
    seconds = sum(row.outcome.result.get("seconds", 0.0) for row in rows)
    spent = f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"
    models = f" --models {args.models}" if args.models else ""
    more = (" --time" if args.time else "") + (f" --name {args.name}" if args.name else "")
    study = f"benchmarks/{args.study.name} --out DIR{models}"
    return (
        f"Measured with `secateur study {study}` ({spent} of pruning and evaluation on the clock, "
        f"added up over one-threaded workers) and `python benchmarks/study_findings.py "
        f"{study}{more}`. {versions()}."
    )


def _lead(record: StudyRecord) -> str:
    counts = ", ".join(f"{number} {status}" for status, number in sorted(record.counts.items()))
    setting = record.setting
    left = record.cells - sum(record.counts.values())
    rest = f", {left} not run yet" if left else ""
    return (
        f"{record.cells} cells: {counts}{rest}. Calibration: "
        f"{_named(setting['calibration'])}. Evaluation: {_named(setting['evaluation'])}, the same "
        f"for every cell. Scores: {setting['scores']}. Budgets: {setting['budgets']}. Repair: "
        f"{setting['repair']} (for whole layers, `least_squares` is the affine replacement). "
        "Intervals are 95 % bootstrap over images and draws; p-values are of Wilcoxon's "
        "signed-rank test over images, given the draws, Holm-corrected for all tests of the study."
    )


def _named(words: str) -> str:
    """Paths by their last part."""
    return " ".join(Path(w).name if "/" in w and len(w) > 20 else w for w in words.split(" "))


def _model(model: ModelRecord, own: Table, *, time: bool) -> list[str]:
    parts = []
    dense = model.dense
    if dense["top1"] is not None:
        parts.append(
            f"Dense top-1: {dense['top1']:.1f} ± {dense['stderr']:.1f} % of {dense['n']:.0f} "
            "images (± one binomial standard error)."
        )
    if model.dense_ms is not None:
        parts.append(
            f"Dense latency: {model.dense_ms:.1f} ms ({model.runtime}); dense and pruned model "
            "ran "
            "in turns."
        )
    parts += ["## Findings", claims(own, model)]
    parts += ["## Redundancy by structure", *_rates(model, own)]
    parts.append(_structures(model, time=time))
    if model.oracle:
        parts += [
            "## Prediction of the degradation by scores",
            _oracle(model),
            _beside(own),
            _scores(model),
        ]
    if model.repairs:
        parts += ["## Effect of the repair", _repairs(model)]
    return parts


def _rates(model: ModelRecord, own: Table) -> list[str]:
    head = ["structure", *own.study.budgets]
    parts = [
        f"Of every structure the score with the least mean KL on these images, under the last "
        f"repair, {UNITS[False]} (thousandths of a nat of KL per percent):",
        table(head, rate_rows(own, model, timed=False)),
    ]
    if model.dense_ms is not None:
        parts += [
            f"The same in {UNITS[True]} ({model.runtime}); – where less than 1 % is saved:",
            table(head, rate_rows(own, model, timed=True)),
        ]
    return parts


def _beside(own: Table) -> str:
    structures, rows = beside_oracle_rows(own)
    about = (
        "KL of the choices of a score minus that of the choices of `delta_kl`, without repair, "
        "mean over budgets, paired, in nats:"
    )
    return about + "\n\n" + table(["score", *(NAMES[name] for name in structures)], rows)


def _structures(model: ModelRecord, *, time: bool) -> str:
    per = f" and, measured ({model.runtime or 'not here'}), of time saved" if time else " saved"
    about = (
        "The same curves in full, sorted by KL within a budget. A structure of few, large pieces "
        f"overshoots its budget, so compare the KL per percent of MACs{per}."
    )
    lines = []
    for budget in dict.fromkeys(p.budget for curve in model.best for p in curve.points):
        own = [(c, p) for c in model.best for p in c.points if p.budget == budget]
        for curve, point in sorted(own, key=lambda pair: pair[1].kl.mean):
            row = [
                budget,
                NAMES[curve.structure],
                curve.score,
                f"{100 * point.macs:.1f} %",
                "–" if point.lost is None else _span(point.lost, 1),
                _nats(point.kl),
                _per_percent(point.kl.mean, point.macs),
            ]
            if time:
                left = point.latency
                row += (
                    ["–", "–"]
                    if left is None
                    else [_timed(model, left), _per_percent(point.kl.mean, left)]
                )
            lines.append(row)
    head = ["budget", "structure", "score", "MACs left", "top-1 lost, points"]
    head += ["KL, nats", "mnats per % MACs"]
    head += ["time left", "mnats per % time"] if time else []
    return about + "\n\n" + table(head, lines)


def _timed(model: ModelRecord, left: float) -> str:
    share = f"{100 * left:.1f} %"
    return share if model.dense_ms is None else f"{share}, {left * model.dense_ms:.1f} ms"


def _per_percent(kl: float, left: float) -> str:
    """Thousandths of a nat per percent saved."""
    saved = 100 * (1 - left)
    return "–" if saved < 1 else f"{1000 * kl / saved:.{2 if 1000 * kl < saved else 3}g}"


def _oracle(model: ModelRecord) -> str:
    about = (
        "Spearman's rank correlation of the score of single layers with the KL when each is left "
        "out; in brackets the least and the largest of the draws."
    )
    structures = list(dict.fromkeys(row.structure for row in model.oracle))
    by_place = {(row.structure, row.score): row for row in model.oracle}
    scores = list(dict.fromkeys(row.score for row in model.oracle))
    scores.sort(key=lambda s: -fmean(row.rho for row in model.oracle if row.score == s))
    lines = []
    for score in scores:
        cells = []
        for structure in structures:
            row = by_place.get((structure, score))
            cells.append(
                "–" if row is None else f"{row.rho:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
            )
        lines.append([score, *cells])
    return about + "\n\n" + table(["score", *(NAMES[s] for s in structures)], lines)


def _scores(model: ModelRecord) -> str:
    about = "KL of a random choice minus that of the score, mean over all budgets, no repair:"
    lines = [
        [NAMES[row.structure], row.score, _small(row.kl), _nats(row.better), _p(row.p)]
        for row in sorted(model.scores, key=lambda r: (list(NAMES).index(r.structure), r.kl))
        if row.repair == "none"
    ]
    head = ["structure", "score", "KL, nats", "less than random", "p"]
    return about + "\n\n" + table(head, lines)


def _repairs(model: ModelRecord) -> str:
    about = "KL without minus KL with repair, all scores but random together."
    lines = [
        [
            NAMES[row.structure],
            row.budget,
            _small(row.kl_before),
            _small(row.kl_after),
            _nats(row.saved),
            _p(row.p),
        ]
        for row in model.repairs
    ]
    head = ["structure", "budget", "KL without", "KL with", "difference", "p"]
    return about + "\n\n" + table(head, lines)


def _span(span: Span, digits: int) -> str:
    return f"{span.mean:.{digits}f} [{span.low:.{digits}f}, {span.high:.{digits}f}]"


def _nats(span: Span) -> str:
    return f"{_small(span.mean)} [{_small(span.low)}, {_small(span.high)}]"


def _small(value: float) -> str:
    """Three digits behind the point, more where that would be nothing."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.1g}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    main()
