"""The main findings of an analysis as plain sentences, computed from its record."""

import shlex
from collections.abc import Iterable
from itertools import pairwise
from math import ceil

from secateur.report.analysis_record import AnalysisRecord, LayerRecord, SeriesRecord
from secateur.report.words import GROUP_NAMES, NBSP, listed, percent, significant

NAMES = {
    "attention": "attention layers",
    "mlp": "MLPs",
    "layers": "layers of either kind",
    "blocks": "whole blocks",
    **{group: GROUP_NAMES[group] for group in ("qk", "vo", "heads", "hidden")},
}
CLEAR = 0.6
"""A rank correlation from which a score is called telling."""


def degradation_words(value: float, unit: str) -> str:
    """A degradation with its unit, three digits at most."""
    if value < 0.0005:
        return f"under 0.001{NBSP}{unit}"
    digits = f"{value:.3f}" if value < 0.1 else significant(value)
    return f"{digits}{NBSP}{unit}"


def loss_words(degradation: float, agreement: float | None, unit: str) -> str:
    """A degradation as a person reads it: the share of predictions that stay first, where known."""
    told = degradation_words(degradation, unit)
    return told if agreement is None else f"{percent(agreement, 0)} of predictions stay ({told})"


def next_command(record: AnalysisRecord) -> tuple[str, str]:
    """Why to prune to which budget next, and the command; the budget is kept MACs in percent."""
    saving, why = _safe_saving(record)
    budget = min(99, max(1, ceil(100 * (1 - saving) - 1e-9)))
    images = record.data.source if record.data.fingerprint else "IMAGES"
    parts = [record.model or "MODEL", "--data", images, "--budget", f"{budget}% macs"]
    return why, f"secateur prune {shlex.join(parts)} --out smaller"


def _safe_saving(record: AnalysisRecord) -> tuple[float, str]:
    """The largest saving measured within the tolerance, as a share of the MACs, and its reason."""
    limit = f"{record.tolerance:g}{NBSP}{record.unit}"
    within = [
        (macs, series.structure)
        for series in record.series
        for macs, degradation in zip(series.macs, series.degradation, strict=True)
        if degradation <= record.tolerance and 0.01 <= macs < 1
    ]
    if not within:
        return 0.1, f"No removal measured here stays within {limit}; start with a small one."
    macs, structure = max(within)
    return macs, (
        f"Making {NAMES[structure]} fewer saves {percent(macs, 0)} of the MACs within {limit}; "
        "pruning with repair over all structures should do at least as well."
    )


def findings(record: AnalysisRecord) -> list[str]:
    """At most four sentences: what can go, what is cheapest, which kind matters, what must stay."""
    sentences = [_droppable(record), _cheapest(record), _kinds(record), _vital(record)]
    return [sentence for sentence in sentences if sentence]


def _droppable(record: AnalysisRecord) -> str:
    own = [layer for layer in record.layers if layer.droppable]
    limit = f"{record.tolerance:g}{NBSP}{record.unit}"
    if not own:
        least = min(record.layers, key=lambda layer: layer.degradation)
        return (
            f"No whole layer can go within {limit}: without {least.id} alone, "
            f"{_left(least, record.unit)}."
        )
    together = next(series for series in record.series if series.structure == "layers")
    at = max(i for i, value in enumerate(together.degradation) if value <= record.tolerance)
    kinds = [
        f"{number} of {total} {NAMES[kind] if total != 1 else NAMES[kind][:-1]}"
        for kind in ("attention", "mlp")
        if (number := sum(layer.kind == kind for layer in own))
        and (total := sum(layer.kind == kind for layer in record.layers))
    ]
    agreement = together.agreement[at]
    same = "" if agreement is None else f" and {percent(agreement, 0)} of predictions stay"
    or_more = "At least " if at == len(together.degradation) - 1 else ""
    if len(own) == 1:
        return (
            f"Only {own[0].id} can go within {limit}: that saves {percent(together.macs[at])} of "
            f"the MACs{same}."
        )
    return (
        f"{or_more}{listed(kinds)} can go together within {limit} ({_short(own)}): that saves "
        f"{percent(together.macs[at])} of the MACs{same}."
    )


def _cheapest(record: AnalysisRecord) -> str:
    """Which structure costs least at a common saving, read off the measured series."""
    saving = _common_saving(record.series)
    if saving is None:
        return ""
    at: dict[str, float] = {}
    words: dict[str, str] = {}
    for series in record.series:
        if (value := degradation_at(series, saving)) is not None:
            at[series.structure] = value
            same = _agreement_at(series, saving)
            words[series.structure] = loss_words(value, same, record.unit)
    if len(at) < 2:
        return ""
    best, worst = min(at, key=at.__getitem__), max(at, key=at.__getitem__)
    repaired = ", repaired" if best in ("qk", "vo", "heads", "hidden") else ""
    return (
        f"For a saving of {percent(saving, 0)} of the MACs, {NAMES[best]} are the cheapest to "
        f"take away: {words[best]}{repaired}. The dearest are {NAMES[worst]}: {words[worst]}."
    )


def _kinds(record: AnalysisRecord) -> str:
    """Attention against MLPs, layer by layer."""
    middle: dict[str, LayerRecord] = {}
    for kind in ("attention", "mlp"):
        own = [layer for layer in record.layers if layer.kind == kind]
        own.sort(key=lambda layer: layer.degradation)
        if own:
            middle[kind] = own[len(own) // 2]
    if len(middle) < 2 or min(layer.degradation for layer in middle.values()) <= 0:
        return ""
    less, more = sorted(middle, key=lambda kind: middle[kind].degradation)
    low, high = (_left(middle[kind], record.unit) for kind in (less, more))
    if middle[more].degradation < 1.2 * middle[less].degradation:
        return (
            "Taken alone, attention layers and MLPs matter alike: without the median layer, "
            f"{low} and {high}."
        )
    return (
        f"Taken alone, {NAMES[less]} matter less than {NAMES[more]}: without the median layer, "
        f"{low} against {high}."
    )


def _vital(record: AnalysisRecord) -> str:
    order = sorted(record.layers, key=lambda layer: -layer.degradation)
    if len(order) < 4:
        return ""
    rest = sorted(layer.degradation for layer in record.layers)[len(order) // 2]
    top = [layer for layer in order[:3] if layer.degradation > 5 * rest]
    if not top:
        return "No single layer stands out as vital: degradations are within a factor of five."
    return (
        f"{listed([layer.id for layer in top])} must stay: without "
        f"{'it' if len(top) == 1 else 'one of them'}, "
        f"{listed([_left(layer, record.unit) for layer in top])}."
    )


def _left(layer: LayerRecord, unit: str) -> str:
    """How the model is without a layer alone."""
    if layer.agreement is None:
        return f"the degradation is {degradation_words(layer.degradation, unit)}"
    return loss_words(layer.degradation, layer.agreement, unit)


def score_finding(record: AnalysisRecord) -> str:
    """Which cheap score to trust here; empty where none could be judged."""
    known = [(score.rho, score) for score in record.scores if score.rho is not None]
    if not known:
        return ""
    rho, best = max(known, key=lambda pair: pair[0])
    cosine = next((r for r, score in known if score.name == "cosine"), None)
    beside = ""
    if cosine is not None and best.name != "cosine":
        beside = f"; cosine similarity has ρ = {cosine:.2f}"
    if rho < CLEAR:
        return (
            f"No cheap score orders the layers well here (best: {best.name}, ρ = {rho:.2f}"
            f"{beside}); trust measured degradation."
        )
    return (
        f"Of the cheap scores, {best.name} orders the layers best (ρ = {rho:.2f} with measured "
        f"degradation{beside})."
    )


def degradation_at(series: SeriesRecord, saving: float) -> float | None:
    """The degradation at a share of MACs saved, linear between measured points; None outside."""
    return _between([(0.0, 0.0), *zip(series.macs, series.degradation, strict=True)], saving)


def _agreement_at(series: SeriesRecord, saving: float) -> float | None:
    """The share of predictions that stay there, in the same way."""
    known = [(x, y) for x, y in zip(series.macs, series.agreement, strict=True) if y is not None]
    return _between([(0.0, 1.0), *known], saving) if known else None


def _between(points: list[tuple[float, float]], at: float) -> float | None:
    for (x0, y0), (x1, y1) in pairwise(sorted(points)):
        if x0 <= at <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return None


def _common_saving(series: Iterable[SeriesRecord]) -> float | None:
    """10 % of the MACs, or what most structures reach if that is less."""
    reach = sorted((max(each.macs) for each in series if each.macs), reverse=True)
    if len(reach) < 2:
        return None
    return min(0.1, reach[min(len(reach) - 1, max(1, len(reach) * 2 // 3))])


def _short(layers: list[LayerRecord]) -> str:
    names = [layer.id for layer in layers]
    if len(names) <= 4:
        return ", ".join(names)
    return ", ".join(names[:3]) + f" and {len(names) - 3} more"
