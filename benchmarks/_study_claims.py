"""What a study's cells say, as sentences with intervals, and as a picture.

Legend: S calibration draws (seeds), N evaluation images.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from _common import RESULTS

from secateur.report.colours import LIGHT
from secateur.report.study_figures import NAMES, STRUCTURES
from secateur.report.study_record import Curve, ModelRecord, OracleRow, Point
from secateur.study.statistics import Array, Interval, bootstrap
from secateur.study.structures import BY_NAME
from secateur.study.table import CONTROL, Table

ORACLE = "delta_kl"
UNITS = {False: "mnats per % of MACs saved", True: "mnats per ms saved"}
LEAST_SAVED = 0.01
"""Share of time below which a structure is said to save none."""


def claims(table: Table, model: ModelRecord) -> str:
    """Bullets: which structure per MAC and per millisecond, which score, what repair changes."""
    found = []
    for timed in (False, True) if model.dense_ms is not None else (False,):
        found.append(_winners(table, model, timed=timed))
        found += [_cheapest(table, model, budget, timed=timed) for budget in table.study.budgets]
    found += [_predictors(model), *_repair(table)]
    return "\n".join(f"- {sentence}" for sentence in found if sentence)


def _winners(table: Table, model: ModelRecord, *, timed: bool) -> str:
    """Which structure costs least at which budgets."""
    found: dict[str, list[str]] = {}
    for budget in table.study.budgets:
        rates = _rates(table, model, budget, timed)
        if rates:
            name, _ = min(rates, key=lambda pair: float(pair[1].mean()))
            found.setdefault(name, []).append(budget)
    told = "; ".join(f"{NAMES[name]} at {', '.join(budgets)}" for name, budgets in found.items())
    per = "per millisecond" if timed else "per MAC"
    return f"**Most redundant {per}: {told}.**" if told else ""


def _cheapest(table: Table, model: ModelRecord, budget: str, *, timed: bool) -> str:
    """The structure of least degradation per cost saved, the next one, and the dearest."""
    rates = sorted(_rates(table, model, budget, timed), key=lambda pair: float(pair[1].mean()))
    if len(rates) < 2:
        return ""
    per = "per millisecond" if timed else "per MAC"
    (first, least), (second, next_), (last, most) = rates[0], rates[1], rates[-1]
    more = ""
    if least.shape == next_.shape:
        more = f", {_words(bootstrap(next_ - least))} more in pairs"
    return (
        f"At {budget}, {per}: {NAMES[first]} cost least, {_words(bootstrap(least))} "
        f"{UNITS[timed]}; then {NAMES[second]}, {_words(bootstrap(next_))}{more}. "
        f"{_capital(NAMES[last])} cost most, {_words(bootstrap(most))}."
    )


def rate_rows(table: Table, model: ModelRecord, *, timed: bool) -> list[list[str]]:
    """Structures by budgets: degradation per cost saved with its interval."""
    found: dict[str, list[str]] = {}
    for budget in table.study.budgets:
        here = dict(_rates(table, model, budget, timed))
        for curve in model.best:
            rate = here.get(curve.structure)
            found.setdefault(curve.structure, []).append(
                "–" if rate is None else _words(bootstrap(rate))
            )
    return [[NAMES[name], *cells] for name, cells in found.items()]


def _rates(table: Table, model: ModelRecord, budget: str, timed: bool) -> list[tuple[str, Array]]:
    """Thousandths of a nat per percent of MACs or millisecond saved (S, N), by structure."""
    found = []
    for curve in model.best:
        for point in curve.points:
            saved = _saved(model, point, timed)
            if point.budget == budget and saved is not None:
                found.append((curve.structure, 1000 * _kl(table, curve, budget) / saved))
    return found


def _saved(model: ModelRecord, point: Point, timed: bool) -> float | None:
    """Percent of MACs, or milliseconds; None where there is next to nothing."""
    if not timed:
        return 100 * (1 - point.macs)
    if point.latency is None or model.dense_ms is None or 1 - point.latency < LEAST_SAVED:
        return None
    return (1 - point.latency) * model.dense_ms


def _predictors(model: ModelRecord) -> str:
    """Cheap scores by their mean rank correlation with the oracle."""
    by_score: dict[str, list[OracleRow]] = {}
    for row in model.oracle:
        if not row.score.startswith("delta"):
            by_score.setdefault(row.score, []).append(row)
    if not by_score:
        return ""
    order = sorted(by_score, key=lambda score: -fmean(row.rho for row in by_score[score]))
    ranks = ", ".join(
        f"{score} {fmean(row.rho for row in by_score[score]):+.2f} "
        f"[{min(row.low for row in by_score[score]):+.2f}, "
        f"{max(row.high for row in by_score[score]):+.2f}]"
        for score in order
    )
    return (
        "Scores that need no removal, by their rank correlation with the KL when one layer or "
        "block is left out, mean over structures, in brackets the least and the largest over "
        f"structures and draws: {ranks}."
    )


def beside_oracle_rows(table: Table) -> tuple[list[str], list[list[str]]]:
    """Whole structures, and by score: KL of its choices minus that of the oracle's."""
    structures = [name for name in table.study.structures if BY_NAME[name].whole]
    found: list[tuple[float, list[str]]] = []
    for score in table.study.scores:
        parts = [_over_budgets(table, name, score, ORACLE) for name in structures]
        if score == ORACLE or all(part is None for part in parts):
            continue
        mean = fmean(float(part.mean()) for part in parts if part is not None)
        cells = ["–" if part is None else _words(bootstrap(part)) for part in parts]
        found.append((mean, [score, *cells]))
    return structures, [row for _, row in sorted(found)]


def _over_budgets(table: Table, structure: str, score: str, other: str) -> Array | None:
    """KL (S, N) of a score minus that of another, mean over the budgets that both finished."""
    both = []
    for budget in table.study.budgets:
        own = _draws(table, structure, score, budget, "none")
        its = _draws(table, structure, other, budget, "none")
        if own is not None and its is not None and own.shape == its.shape:
            both.append(own - its)
    if not both:
        return None
    draws = min(map(len, both))
    mean_SN: Array = np.mean([part[:draws] for part in both], axis=0)
    return mean_SN


def _repair(table: Table) -> list[str]:
    """KL with repair minus KL without, all scores but chance and all budgets together."""
    found = []
    for repair in table.study.repair:
        if repair == "none":
            continue
        words = []
        for structure in table.study.structures:
            pairs = [
                (before, after)
                for score in table.study.scores
                if score != CONTROL
                for budget in table.study.budgets
                if (before := _draws(table, structure, score, budget, "none")) is not None
                and (after := _draws(table, structure, score, budget, repair)) is not None
                and before.shape == after.shape
            ]
            if pairs:
                draws = min(len(before) for before, _ in pairs)
                before_SN = np.mean([before[:draws] for before, _ in pairs], axis=0)
                after_SN = np.mean([after[:draws] for _, after in pairs], axis=0)
                share = 100 * (float(after_SN.mean()) / float(before_SN.mean()) - 1)
                words.append(
                    f"{NAMES[structure]} {share:+.0f} % ({_words(bootstrap(after_SN - before_SN))}"
                    " nats)"
                )
        if words:
            found.append(
                f"Repair `{repair}` changes the KL, mean over scores but random and over budgets, "
                f"by: {', '.join(words)}."
            )
    return found


def _kl(table: Table, curve: Curve, budget: str) -> Array:
    found = _draws(table, curve.structure, curve.score, budget, curve.repair)
    assert found is not None
    return found


def _draws(table: Table, structure: str, score: str, budget: str, repair: str) -> Array | None:
    """KL (S, N)."""
    draws = table.draws(structure, score, budget, repair)
    return np.stack([np.asarray(draw.kl, dtype=np.float64) for draw in draws]) if draws else None


def _words(interval: Interval) -> str:
    return f"{_short(interval.mean)} [{_short(interval.low)}, {_short(interval.high)}]"


def _short(value: float) -> str:
    """Two digits that count, three from one on."""
    return f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def plot(models: Sequence[ModelRecord], name: str) -> Path:
    """KL of the best score of every structure over MACs and, if measured, over time."""
    import matplotlib

    matplotlib.use("svg")
    # The same rows give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "secateur"
    from matplotlib import pyplot

    panels = [
        (model, timed)
        for model in models
        for timed in (False, True)
        if not timed or model.dense_ms is not None
    ]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.6), layout="constrained", squeeze=False
    )
    for panel, (model, timed) in zip(axes[0], panels, strict=True):
        for curve in model.best:
            points = [p for p in curve.points if not timed or p.latency is not None]
            xs = [
                (p.latency or 0) * (model.dense_ms or 0) if timed else 100 * p.macs for p in points
            ]
            colour, _, dash = STRUCTURES[curve.structure]
            panel.errorbar(
                xs,
                [p.kl.mean for p in points],
                yerr=[
                    [p.kl.mean - p.kl.low for p in points],
                    [p.kl.high - p.kl.mean for p in points],
                ],
                label=f"{NAMES[curve.structure]} ({curve.score})",
                color=LIGHT[colour],
                linestyle={"solid": "-", "dash": "--", "dot": ":"}[dash],
                marker="o",
                markersize=4,
                capsize=2,
            )
        unit = f"ms ({model.runtime}; dense {model.dense_ms:.0f})" if timed else "MACs left, %"
        panel.set(xlabel=unit, ylabel="KL from dense, nats", yscale="log", title=model.name)
        panel.invert_xaxis()
        panel.grid(alpha=0.25)
    axes[0][0].legend(fontsize=7)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
