"""The main findings of a study as plain sentences, and its p-values, computed from its record."""

from collections.abc import Sequence

from secateur.report.study_figures import NAMES, value_of
from secateur.report.study_record import Curve, ModelRecord, Point, Span, StudyRecord
from secateur.report.words import NBSP, points

SURE = 0.05
"""A corrected p-value below this counts as a difference."""
REPAIRS = {
    "none": "without repair",
    "mean": "mean repair",
    "least_squares": "least-squares repair",
    "own": "each with its own groups and repair",
}


def findings(record: StudyRecord) -> list[str]:
    """Of every model: the best structure, what repair changes, the best score."""
    found = []
    for model in record.models:
        own = [_best(model), _repair(model), _score(model)]
        prefix = f"{model.name}: " if len(record.models) > 1 else ""
        found += [f"{prefix}{sentence}" for sentence in own if sentence]
    return found


def clear(span: Span) -> bool:
    """Whether an interval leaves out zero."""
    return span.low > 0 or span.high < 0


def p_words(p: float, span: Span) -> str:
    """A corrected p-value; a dash where it and the interval beside it say different things.

    The test looks at images given the calibration draws, the interval at both, so that only where
    they agree something is known.
    """
    if (p < SURE) is not clear(span):
        return "–"
    if p < 0.001:
        return "< 0.001 *"
    return f"{p:.3f}" + (" *" if p < SURE else "")


def _best(model: ModelRecord) -> str:
    """The structure that loses least at the smallest budget which several of them reach."""
    at = _smallest_common(model.best)
    if at is None:
        return ""
    labelled = model.dense.get("top1") is not None
    ranked = sorted(at, key=lambda pair: value_of(model, pair[1]).mean, reverse=labelled)
    (best, point), (worst, last) = ranked[0], ranked[-1]
    return (
        f"At the budget {point.budget}, {NAMES[best.structure]} chosen by {best.score} lose least "
        f"({_value(model, point)}) and {NAMES[worst.structure]} most ({_value(model, last)})."
    )


def _smallest_common(curves: Sequence[Curve]) -> list[tuple[Curve, Point]] | None:
    by_budget: dict[str, list[tuple[Curve, Point]]] = {}
    for curve in curves:
        for point in curve.points:
            by_budget.setdefault(point.budget, []).append((curve, point))
    common = [own for own in by_budget.values() if len(own) > 1]
    if not common:
        return None
    most = max(len(own) for own in common)
    return min(
        (own for own in common if len(own) == most), key=lambda own: min(p.macs for _, p in own)
    )


def _value(model: ModelRecord, point: Point) -> str:
    span = value_of(model, point)
    if point.lost is not None and model.dense.get("top1") is not None:
        interval = f"[{-point.lost.high:+.1f}, {-point.lost.low:+.1f}]".replace("-", "−")
        return f"top-1 {span.mean:.1f}{NBSP}%, {points(-point.lost.mean)} {interval}"
    return f"KL {span.mean:.3f}{NBSP}nats [{span.low:.3f}, {span.high:.3f}]"


def _repair(model: ModelRecord) -> str:
    rows = model.repairs
    if not rows:
        return ""
    sure = [row for row in rows if row.p < SURE and row.saved.low > 0]
    worse = [row for row in rows if row.p < SURE and row.saved.high < 0]
    if not sure and not worse:
        return f"Repair makes no clear difference in any of {len(rows)} comparisons."
    told = f"Repair lowers the KL clearly in {len(sure)} of {len(rows)} comparisons"
    if sure:
        top = max(sure, key=lambda row: row.saved.mean)
        told += (
            f", most on {NAMES[top.structure]} at {top.budget} ({REPAIRS[top.repair]}: "
            f"{top.kl_before:.3f} → {top.kl_after:.3f}{NBSP}nats)"
        )
    return told + (f", and raises it in {len(worse)}." if worse else ".")


def _score(model: ModelRecord) -> str:
    if not model.oracle:
        return ""
    by_score: dict[str, list[float]] = {}
    for row in model.oracle:
        by_score.setdefault(row.score, []).append(row.rho)
    most = max(len(own) for own in by_score.values())
    means = {name: sum(own) / most for name, own in by_score.items() if len(own) == most}
    best = max(means, key=means.__getitem__)
    return (
        f"Of {len(means)} scores, {best} agrees best with the degradation of single removals "
        f"(mean rank correlation {means[best]:+.2f})."
    )
