"""The charts of an analysis page; what is left falls from the left to the right in all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from secateur.report.analysis_record import AnalysisRecord, CurveRecord, LayerRecord
from secateur.report.analysis_words import NAMES, degradation_words, loss_words
from secateur.report.drawing.chart import Axis, Chart, Dash, Line, Rule, Symbol
from secateur.report.figures import LABELS, MARKERS, block_axis, left_axis
from secateur.report.words import count, percent

COLOURS = {
    "attention": "attention",
    "mlp": "hidden",
    "layers": "ink",
    "blocks": "dropped",
    "qk": "qk",
    "vo": "vo",
    "heads": "heads",
    "hidden": "hidden",
}
DASHES: dict[str, Dash] = {"qk": "dot", "vo": "dot", "heads": "dot", "hidden": "dot"}
SYMBOLS: dict[str, Symbol] = {
    "attention": "circle",
    "mlp": "square",
    "layers": "star",
    "blocks": "cross",
    **MARKERS,
}
FLOOR = 1e-4
"""Degradations below this are drawn at it: on a log axis, nothing has no place."""
KINDS: tuple[tuple[str, str, float, Symbol], ...] = (
    ("attention", "attention", -0.12, "circle"),
    ("mlp", "hidden", 0.12, "square"),
)


def importance_figure(record: AnalysisRecord) -> Chart:
    """Degradation of every layer alone, with its standard error; droppable layers are hollow."""
    blocks = sorted({layer.block for layer in record.layers})
    lines = []
    for kind, colour, shift, symbol in KINDS:
        for droppable in (False, True):
            own = [x for x in record.layers if x.kind == kind and x.droppable is droppable]
            if not own:
                continue
            lines.append(
                Line(
                    name=LABELS[kind] + (", can go" if droppable else ""),
                    x=tuple(blocks.index(layer.block) + shift for layer in own),
                    y=_at_least_floor(layer.degradation for layer in own),
                    colour=colour,
                    line=False,
                    hollow=droppable,
                    symbol=symbol,
                    size=5,
                    low=_at_least_floor(layer.degradation - layer.stderr for layer in own),
                    high=_at_least_floor(layer.degradation + layer.stderr for layer in own),
                    hover=tuple(_layer_hover(record, layer) for layer in own),
                )
            )
    return Chart(
        height=330,
        x=block_axis([str(block) for block in blocks]),
        y=Axis(title=f"degradation alone, {record.unit}", scale="log"),
        marks=tuple(lines),
        rules=(_tolerance(record),),
        direct=False,
    )


def series_figure(record: AnalysisRecord) -> Chart:
    """More and more of each structure gone at once: degradation over MACs left."""
    lines = []
    for series in record.series:
        name = NAMES[series.structure]
        errors = series.stderr or (0.0,) * len(series.degradation)
        degradation = tuple(zip(series.degradation, errors, strict=True))
        # WHY: the least damaging layers are often all of one kind, whose line is then the same.
        broad = series.structure == "layers"
        lines.append(
            Line(
                name=name,
                width=7 if broad else 2,
                opacity=0.35 if broad else 1.0,
                x=tuple(1 - macs for macs in series.macs),
                y=_at_least_floor(series.degradation),
                colour=COLOURS[series.structure],
                dash=DASHES.get(series.structure, "solid"),
                symbol=SYMBOLS[series.structure],
                low=_at_least_floor(value - error for value, error in degradation),
                high=_at_least_floor(value + error for value, error in degradation),
                hover=tuple(
                    f"{name}: {what}\n{percent(1 - macs)} of the MACs left\n"
                    + loss_words(value, same, record.unit)
                    for what, macs, value, same in zip(
                        series.what, series.macs, series.degradation, series.agreement, strict=True
                    )
                ),
            )
        )
    lines.sort(key=lambda line: -line.width)
    return Chart(
        height=400,
        x=left_axis("MACs left", (x for line in lines for x in line.x)),
        y=Axis(title=f"degradation, {record.unit}", scale="log"),
        marks=tuple(lines),
        rules=(_tolerance(record),),
    )


def curves_figure(record: AnalysisRecord, group: str) -> Chart | None:
    """Degradation of one group over its kept share, one line per layer; measured sizes are dots."""
    own = [curve for curve in record.curves if curve.group == group]
    if not own:
        return None
    lines = []
    for curve in own:
        sizes = tuple(size / curve.sizes[-1] for size in curve.sizes[:-1])
        degradation = _at_least_floor(curve.degradation[:-1])
        line = Line(
            name=curve.owner,
            x=sizes,
            y=degradation,
            colour=group,
            opacity=_depth_opacity(record, curve),
            dots=False,
            width=1.4,
            legend=False,
        )
        lines.append(line)
        measured = [i for i, size in enumerate(curve.sizes[:-1]) if size in curve.measured]
        lines.append(
            replace(
                line,
                x=tuple(sizes[i] for i in measured),
                y=tuple(degradation[i] for i in measured),
                line=False,
                dots=True,
                size=3,
                hover=tuple(
                    f"{curve.owner}\n{curve.sizes[i]} of {curve.sizes[-1]} left"
                    f"\n{degradation_words(curve.degradation[i], record.unit)}"
                    for i in measured
                ),
            )
        )
    return Chart(
        height=270,
        x=Axis(title="left", low=1.0, high=0.0, form="percent"),
        y=Axis(title=f"degradation, {record.unit}", scale="log"),
        marks=tuple(lines),
        rules=(_tolerance(record),),
    )


def spectra_figure(record: AnalysisRecord, group: str) -> Chart | None:
    """Share of a group's spectrum that its largest dims hold, one line per layer."""
    own = [spectrum for spectrum in record.spectra if spectrum.group == group]
    if not own:
        return None
    deepest = max(1, len(own) - 1)
    lines = []
    for place, spectrum in enumerate(own):
        # WHY: long spectra are told at every n-th dim only.
        step = -(-spectrum.size // len(spectrum.held))
        dims = [(i + 1) * step for i in range(len(spectrum.held))]
        lines.append(
            Line(
                name=spectrum.owner,
                x=(0.0, *(n / spectrum.size for n in dims)),
                y=(0.0, *spectrum.held),
                colour=group,
                width=1.4,
                dots=False,
                opacity=0.3 + 0.7 * place / deepest,
                legend=False,
            )
        )
    return Chart(
        height=250,
        x=Axis(title="largest dims", low=0, high=1, form="percent"),
        y=Axis(title="held", low=0, high=1, form="percent"),
        marks=tuple(lines),
    )


def ranks_figure(record: AnalysisRecord) -> Chart:
    """Effective rank as a share of the size, per group over depth."""
    blocks = sorted({layer.block for layer in record.layers})
    block_of = {layer.id: layer.block for layer in record.layers}
    lines = []
    for group, name in (("qk", "query/key"), ("vo", "value"), ("hidden", "MLP neurons")):
        own = [spectrum for spectrum in record.spectra if spectrum.group == group]
        if not own:
            continue
        lines.append(
            Line(
                name=name,
                x=tuple(float(blocks.index(block_of[s.owner])) for s in own),
                y=tuple(s.effective / s.size for s in own),
                colour=group,
                symbol=MARKERS[group],
                hover=tuple(
                    f"{s.owner}\n{s.effective:.1f} effective dims of {s.size}\n99 % is in {s.most}"
                    for s in own
                ),
            )
        )
    return Chart(
        x=block_axis([str(block) for block in blocks]),
        y=Axis(title="effective dims / dims", low=0, form="percent"),
        marks=tuple(lines),
    )


def score_figure(record: AnalysisRecord, name: str) -> Chart:
    """One criterion against measured degradation, by rank of the criterion."""
    order = sorted(record.layers, key=lambda layer: layer.scores[name])
    rank = {layer.id: i + 1 for i, layer in enumerate(order)}
    lines = []
    for kind, colour, _, symbol in KINDS:
        own = [layer for layer in record.layers if layer.kind == kind]
        lines.append(
            Line(
                name=LABELS[kind],
                x=tuple(float(rank[layer.id]) for layer in own),
                y=_at_least_floor(layer.degradation for layer in own),
                colour=colour,
                line=False,
                symbol=symbol,
                size=3.5,
                legend=False,
                hover=tuple(
                    f"{layer.id}\n{name} {layer.scores[name]:.4g}\n"
                    + loss_words(layer.degradation, layer.agreement, record.unit)
                    for layer in own
                ),
            )
        )
    return Chart(
        height=230,
        x=Axis(title="rank by score", low=0, high=len(order) + 1),
        y=Axis(title=record.unit, scale="log"),
        marks=tuple(lines),
    )


def _tolerance(record: AnalysisRecord) -> Rule:
    return Rule(y=record.tolerance, label=f"tolerance {record.tolerance:g} {record.unit}")


def _at_least_floor(values: Iterable[float] | Sequence[float]) -> tuple[float, ...]:
    return tuple(max(value, FLOOR) for value in values)


def _layer_hover(record: AnalysisRecord, layer: LayerRecord) -> str:
    return (
        f"{layer.id}\nwithout it: {loss_words(layer.degradation, layer.agreement, record.unit)}"
        f"\nupdate {percent(layer.update)} of the stream\n{count(layer.macs)}MACs, "
        f"{count(layer.params)} parameters"
    )


def _depth_opacity(record: AnalysisRecord, curve: CurveRecord) -> float:
    """Early layers pale, late ones full."""
    blocks = [layer.block for layer in record.layers]
    block = next(layer.block for layer in record.layers if layer.id == curve.owner)
    return round(0.3 + 0.7 * (block - min(blocks)) / max(max(blocks) - min(blocks), 1), 3)
