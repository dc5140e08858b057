"""The main findings of an analysis as plain sentences, computed from its record."""

from collections.abc import Iterable
from itertools import pairwise

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


def damage_words(value: float, unit: str) -> str:
    """A degradation with its unit, three digits at most."""
    if value < 0.0005:
        return f"under 0.001{NBSP}{unit}"
    digits = f"{value:.3f}" if value < 0.1 else significant(value)
    return f"{digits}{NBSP}{unit}"


def findings(record: AnalysisRecord) -> list[str]:
    """At most four sentences: what can go, what is cheapest, which kind matters, what must stay."""
    sentences = [_droppable(record), _cheapest(record), _kinds(record), _vital(record)]
    return [sentence for sentence in sentences if sentence]


def _droppable(record: AnalysisRecord) -> str:
    own = [layer for layer in record.layers if layer.droppable]
    limit = f"{record.tolerance:g}{NBSP}{record.unit}"
    if not own:
        least = min(record.layers, key=lambda layer: layer.damage)
        return (
            f"No whole layer can go within {limit}: even {least.id} alone costs "
            f"{damage_words(least.damage, record.unit)}."
        )
    together = next(series for series in record.series if series.structure == "layers")
    at = max(i for i, value in enumerate(together.damage) if value <= record.tolerance)
    kinds = [
        f"{number} of {total} {NAMES[kind] if total != 1 else NAMES[kind][:-1]}"
        for kind in ("attention", "mlp")
        if (number := sum(layer.kind == kind for layer in own))
        and (total := sum(layer.kind == kind for layer in record.layers))
    ]
    agreement = together.agreement[at]
    same = "" if agreement is None else f" and {percent(agreement, 0)} of predictions stay"
    or_more = "At least " if at == len(together.damage) - 1 else ""
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
    at = {
        series.structure: value
        for series in record.series
        if (value := damage_at(series, saving)) is not None
    }
    if len(at) < 2:
        return ""
    best, worst = min(at, key=at.__getitem__), max(at, key=at.__getitem__)
    repaired = ", repaired" if best in ("qk", "vo", "heads", "hidden") else ""
    return (
        f"For a saving of {percent(saving, 0)} of the MACs, {NAMES[best]} are the cheapest to "
        f"take away ({damage_words(at[best], record.unit)}{repaired}) and {NAMES[worst]} the "
        f"dearest ({damage_words(at[worst], record.unit)})."
    )


def _kinds(record: AnalysisRecord) -> str:
    """Attention against MLPs, layer by layer."""
    means = {}
    for kind in ("attention", "mlp"):
        own = sorted(layer.damage for layer in record.layers if layer.kind == kind)
        if own:
            means[kind] = own[len(own) // 2]
    if len(means) < 2 or min(means.values()) <= 0:
        return ""
    less, more = sorted(means, key=means.__getitem__)
    ratio = means[more] / means[less]
    if ratio < 1.2:
        return (
            "Taken alone, attention layers and MLPs matter alike: the median costs "
            f"{damage_words(means[less], record.unit)} and "
            f"{damage_words(means[more], record.unit)}."
        )
    return (
        f"Taken alone, {NAMES[less]} matter less than {NAMES[more]}: the median costs "
        f"{damage_words(means[less], record.unit)} against "
        f"{damage_words(means[more], record.unit)}."
    )


def _vital(record: AnalysisRecord) -> str:
    order = sorted(record.layers, key=lambda layer: -layer.damage)
    if len(order) < 4:
        return ""
    rest = sorted(layer.damage for layer in record.layers)[len(order) // 2]
    top = [layer for layer in order[:3] if layer.damage > 5 * rest]
    if not top:
        return "No single layer stands out as vital: damages are within a factor of five."
    return (
        f"{listed([layer.id for layer in top])} must stay: "
        f"{'it costs' if len(top) == 1 else 'they cost'} "
        f"{listed([damage_words(layer.damage, record.unit) for layer in top])} alone."
    )


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
            f"{beside}); trust measured damage."
        )
    return (
        f"Of the cheap scores, {best.name} orders the layers best (ρ = {rho:.2f} with measured "
        f"damage{beside})."
    )


def damage_at(series: SeriesRecord, saving: float) -> float | None:
    """The degradation at a share of MACs saved, linear between measured points; None outside."""
    points = sorted([(0.0, 0.0), *zip(series.macs, series.damage, strict=True)])
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= saving <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (saving - x0) / (x1 - x0)
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
