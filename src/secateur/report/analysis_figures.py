"""The charts of an analysis page; see `figures.py` for the house style."""

from collections.abc import Iterable
from html import escape

import plotly.graph_objects as go

from secateur.report.analysis_record import AnalysisRecord, CurveRecord, LayerRecord
from secateur.report.analysis_words import NAMES, damage_words
from secateur.report.figures import LABELS, MARKERS, plain_figure
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
DASHES = {"qk": "dot", "vo": "dot", "heads": "dot", "hidden": "dot"}
SYMBOLS = {"attention": "circle", "mlp": "square", "layers": "star", "blocks": "x", **MARKERS}
FLOOR = 1e-4
"""Degradations below this are drawn at it: on a log axis, nothing has no place."""


def importance_figure(record: AnalysisRecord) -> go.Figure:
    """Degradation of every layer alone, attention beside MLP, droppable ones pale."""
    blocks = sorted({layer.block for layer in record.layers})
    fig = plain_figure(height=330, x_title="block", y_title=f"damage alone, {record.unit}")
    low = _low(layer.damage for layer in record.layers)
    for kind, colour, shift in (("attention", "attention", -0.21), ("mlp", "hidden", 0.21)):
        for droppable in (False, True):
            own = [x for x in record.layers if x.kind == kind and x.droppable is droppable]
            if not own:
                continue
            fig.add_bar(
                x=[blocks.index(layer.block) + shift for layer in own],
                y=[max(layer.damage, low) for layer in own],
                width=0.4,
                name=LABELS[kind] + (", can go" if droppable else ""),
                marker={
                    "color": f"var(--{colour}{'-pale' if droppable else ''})",
                    "line": {"color": f"var(--{colour})", "width": 1.5 if droppable else 0},
                },
                hovertext=[_layer_hover(record, layer) for layer in own],
                hoverinfo="text",
            )
    fig.update_layout(barmode="overlay")
    high = max(layer.damage for layer in record.layers)
    fig.update_yaxes(type="log", rangemode="normal", dtick=1, exponentformat="none")
    if high < 100 * low:
        ticks = [m * 10.0**e for e in range(-4, 3) for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= 2 * high]
        fig.update_yaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    step = max(1, len(blocks) // 16)
    fig.update_xaxes(
        tickvals=list(range(0, len(blocks), step)), ticktext=[str(b) for b in blocks[::step]]
    )
    return fig


def series_figure(record: AnalysisRecord) -> go.Figure:
    """More and more of each structure gone at once: degradation over MACs saved."""
    fig = plain_figure(height=400, x_title="MACs saved", y_title=f"damage, {record.unit}")
    for series in record.series:
        name = NAMES[series.structure]
        fig.add_scatter(
            x=series.macs,
            y=[max(value, FLOOR) for value in series.damage],
            mode="lines+markers",
            name=name,
            line={
                "color": f"var(--{COLOURS[series.structure]})",
                "width": 2,
                "dash": DASHES.get(series.structure, "solid"),
            },
            marker={"symbol": SYMBOLS[series.structure], "size": 8},
            hovertext=[
                f"<b>{name}: {what}</b><br>{percent(macs)} of the MACs saved<br>"
                f"{damage_words(damage, record.unit)}"
                + ("" if same is None else f", {percent(same)} of predictions stay")
                for what, macs, damage, same in zip(
                    series.what, series.macs, series.damage, series.agreement, strict=True
                )
            ],
            hoverinfo="text",
        )
    fig.add_hline(y=record.tolerance, line={"color": "var(--muted)", "width": 1, "dash": "dash"})
    fig.update_yaxes(type="log", rangemode="normal", dtick=1, exponentformat="none")
    fig.update_xaxes(tickformat=".0%", rangemode="tozero", showgrid=True)
    return fig


def shares_figure(record: AnalysisRecord) -> go.Figure:
    """Where parameters, MACs and time are."""
    titles = {"params": "parameters", "macs": "MACs", "ms": "time"}
    names = {
        "qk": "query/key",
        "vo": "value",
        "attention": "attention",
        "hidden": "MLP",
        "rest": "embedding, norms, head",
    }
    colours = {part: f"var(--{part})" for part in ("qk", "vo", "attention", "hidden")}
    fig = plain_figure(height=60 + 62 * len(record.shares))
    rows = [titles[row.what] for row in record.shares]
    for part, name in names.items():
        values = [row.parts.get(part, 0.0) for row in record.shares]
        if not any(values):
            continue
        fig.add_bar(
            orientation="h",
            y=rows,
            x=values,
            name=name,
            marker={"color": colours.get(part, "var(--line)")},
            text=[percent(value, 0) if value > 0.06 else "" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": "var(--ink)" if part == "rest" else "var(--paper)"},
            hovertext=[
                f"<b>{name}</b>: {percent(v)} of the {r}" for v, r in zip(values, rows, strict=True)
            ],
            hoverinfo="text",
        )
    fig.update_layout(barmode="stack", bargap=0.35, margin={"l": 84, "b": 8})
    fig.update_yaxes(autorange="reversed", showgrid=False, title_text="")
    fig.update_xaxes(showticklabels=False, range=[0, 1])
    return fig


def curves_figure(record: AnalysisRecord, group: str) -> go.Figure | None:
    """Degradation of one group over its kept share, one line per layer; measured sizes are dots."""
    own = [curve for curve in record.curves if curve.group == group]
    if not own:
        return None
    fig = plain_figure(height=290, x_title="kept", y_title=f"damage, {record.unit}")
    for curve in own:
        sizes = [s / curve.sizes[-1] for s in curve.sizes[:-1]]
        damage = [max(value, FLOOR) for value in curve.damage[:-1]]
        fig.add_scatter(
            x=sizes,
            y=damage,
            mode="lines",
            line={"color": f"var(--{group})", "width": 1.4},
            opacity=_depth_opacity(record, curve),
            showlegend=False,
            hoverinfo="skip",
        )
        measured = [i for i, s in enumerate(curve.sizes[:-1]) if s in curve.measured]
        fig.add_scatter(
            x=[sizes[i] for i in measured],
            y=[damage[i] for i in measured],
            mode="markers",
            marker={"color": f"var(--{group})", "size": 6},
            opacity=_depth_opacity(record, curve),
            showlegend=False,
            hovertext=[
                f"<b>{escape(curve.owner)}</b><br>{curve.sizes[i]} of {curve.sizes[-1]} kept"
                f"<br>{damage_words(curve.damage[i], record.unit)}"
                for i in measured
            ],
            hoverinfo="text",
        )
    fig.update_yaxes(type="log", rangemode="normal", dtick=1, exponentformat="none")
    fig.update_xaxes(tickformat=".0%", range=[0, 1.02])
    fig.update_layout(margin={"l": 66})
    return fig


def spectra_figure(record: AnalysisRecord, group: str) -> go.Figure | None:
    """Share of a group's spectrum that its largest dims hold, one line per layer."""
    own = [spectrum for spectrum in record.spectra if spectrum.group == group]
    if not own:
        return None
    fig = plain_figure(height=250, x_title="largest dims", y_title="held")
    deepest = max(1, len(own) - 1)
    for place, spectrum in enumerate(own):
        # WHY: long spectra are told at every n-th dim only.
        step = -(-spectrum.size // len(spectrum.held))
        dims = [(i + 1) * step for i in range(len(spectrum.held))]
        fig.add_scatter(
            x=[0.0, *(n / spectrum.size for n in dims)],
            y=[0.0, *spectrum.held],
            mode="lines",
            line={"color": f"var(--{group})", "width": 1.4},
            opacity=0.3 + 0.7 * place / deepest,
            showlegend=False,
            hovertext=[
                "",
                *(
                    f"<b>{escape(spectrum.owner)}</b><br>{n} dims of {spectrum.size} hold "
                    f"{percent(held)}"
                    for n, held in zip(dims, spectrum.held, strict=True)
                ),
            ],
            hoverinfo="text",
        )
    fig.update_xaxes(tickformat=".0%", range=[0, 1.02], dtick=0.5)
    fig.update_yaxes(tickformat=".0%", range=[0, 1.03], dtick=0.5)
    fig.update_layout(margin={"t": 8})
    return fig


def ranks_figure(record: AnalysisRecord) -> go.Figure:
    """Effective rank as a share of the size, per group over depth."""
    fig = plain_figure(height=300, x_title="block", y_title="effective dims / dims")
    block_of = {layer.id: layer.block for layer in record.layers}
    for group, name in (("qk", "query/key"), ("vo", "value"), ("hidden", "MLP neurons")):
        own = [spectrum for spectrum in record.spectra if spectrum.group == group]
        if not own:
            continue
        fig.add_scatter(
            x=[block_of[s.owner] for s in own],
            y=[s.effective / s.size for s in own],
            mode="lines+markers",
            name=name,
            line={"color": f"var(--{group})", "width": 2},
            marker={"symbol": MARKERS[group], "size": 8},
            hovertext=[
                f"<b>{escape(s.owner)}</b><br>{s.effective:.1f} effective dims of {s.size}<br>"
                f"99 % is in {s.most}"
                for s in own
            ],
            hoverinfo="text",
        )
    fig.update_yaxes(tickformat=".0%")
    fig.update_xaxes(dtick=max(1, len(record.blocks) // 16))
    return fig


def score_figure(record: AnalysisRecord, name: str) -> go.Figure:
    """One criterion against measured degradation, by rank of the criterion."""
    fig = plain_figure(height=230, x_title="rank by score", y_title=record.unit)
    order = sorted(record.layers, key=lambda layer: layer.scores[name])
    rank = {layer.id: i + 1 for i, layer in enumerate(order)}
    for kind, colour, symbol in (("attention", "attention", "circle"), ("mlp", "hidden", "square")):
        own = [layer for layer in record.layers if layer.kind == kind]
        fig.add_scatter(
            x=[rank[layer.id] for layer in own],
            y=[max(layer.damage, FLOOR) for layer in own],
            mode="markers",
            name=LABELS[kind],
            marker={"color": f"var(--{colour})", "symbol": symbol, "size": 7},
            hovertext=[
                f"<b>{escape(layer.id)}</b><br>{escape(name)} {layer.scores[name]:.4g}<br>"
                f"{damage_words(layer.damage, record.unit)}"
                for layer in own
            ],
            hoverinfo="text",
        )
    fig.update_layout(showlegend=False, margin={"t": 8})
    fig.update_yaxes(type="log", rangemode="normal", dtick=1, exponentformat="none")
    return fig


def _layer_hover(record: AnalysisRecord, layer: LayerRecord) -> str:
    same = "" if layer.agreement is None else f"<br>{percent(layer.agreement)} of predictions stay"
    return (
        f"<b>{escape(layer.id)}</b><br>{damage_words(layer.damage, record.unit)} without it{same}"
        f"<br>update {percent(layer.update)} of the stream<br>{count(layer.macs)}MACs, "
        f"{count(layer.params)} parameters"
    )


def _low(values: Iterable[float]) -> float:
    """Where bars on a log axis may start: below the least value, not below `FLOOR`."""
    return max(FLOOR, min(values) * 0.9)


def _depth_opacity(record: AnalysisRecord, curve: CurveRecord) -> float:
    """Early layers pale, late ones full."""
    blocks = [layer.block for layer in record.layers]
    block = next(layer.block for layer in record.layers if layer.id == curve.owner)
    return round(0.3 + 0.7 * (block - min(blocks)) / max(max(blocks) - min(blocks), 1), 3)
