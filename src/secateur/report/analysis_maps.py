"""The maps of an analysis page: depth against depth, heads, pairs of layers."""

from html import escape

import plotly.graph_objects as go

from secateur.report.analysis_record import AnalysisRecord, Matrix
from secateur.report.analysis_words import damage_words
from secateur.report.figures import plain_figure


def similarity_figure(values: Matrix, points: tuple[int, ...], name: str) -> go.Figure:
    """Similarity between depths as a map; point 0 is the stream before the first block."""
    labels = ["in" if point == 0 else str(point - 1) for point in points]
    hover = [
        [
            f"after {_point(a)} and after {_point(b)}<br>"
            + ("not comparable" if value is None else f"{name} {value:.3f}")
            for value, b in zip(row, points, strict=True)
        ]
        for row, a in zip(values, points, strict=True)
    ]
    fig = _map(values, labels, labels, hover, low=0.0, high=1.0, colour="attention", small=True)
    fig.update_xaxes(title_text="block")
    fig.update_yaxes(title_text="block", autorange="reversed")
    return fig


def heads_figure(record: AnalysisRecord) -> go.Figure:
    """For every head, how alike the head of its layer most like it is."""
    rows: list[list[float | None]] = []
    hover: list[list[str]] = []
    width = max(len(layer.cka) for layer in record.heads)
    for layer in record.heads:
        row: list[float | None] = [None] * width
        words = [""] * width
        for head, own in enumerate(layer.cka):
            near = max((v or 0.0, j) for j, v in enumerate(own) if j != head)
            row[head] = near[0]
            words[head] = (
                f"<b>{escape(layer.owner)}, head {head}</b><br>nearest: head {near[1]}, "
                f"CKA {near[0]:.2f}"
            )
        rows.append(row)
        hover.append(words)
    labels = [layer.owner.removeprefix("blocks.").removesuffix(".attn") for layer in record.heads]
    high = max(0.5, *(value or 0.0 for row in rows for value in row))
    fig = _map(
        tuple(map(tuple, rows)),
        [str(head) for head in range(width)],
        labels,
        hover,
        low=0.0,
        high=high,
        colour="heads",
    )
    fig.update_xaxes(title_text="head")
    fig.update_yaxes(title_text="block", autorange="reversed")
    return fig


def interactions_figure(record: AnalysisRecord) -> go.Figure | None:
    """Degradation of two layers together less the sum of both alone."""
    found = record.interactions
    if found is None:
        return None
    largest = max((abs(v) for row in found.excess for v in row if v is not None), default=1.0)
    hover = [
        [
            ""
            if value is None or both is None
            else f"<b>{escape(a)} and {escape(b)}</b><br>together "
            f"{damage_words(both, record.unit)}<br>{value:+.3f} beyond the sum of both alone"
            for value, both, b in zip(row, together, found.owners, strict=True)
        ]
        for row, together, a in zip(found.excess, found.together, found.owners, strict=True)
    ]
    labels = [_short(name) for name in found.owners]
    fig = _map(found.excess, labels, labels, hover, low=-largest, high=largest, colour=None)
    fig.update_yaxes(autorange="reversed")
    return fig


def _map(
    values: Matrix,
    x: list[str],
    y: list[str],
    hover: list[list[str]],
    *,
    low: float,
    high: float,
    colour: str | None,
    small: bool = False,
) -> go.Figure:
    """A matrix as a map; without a colour, diverging around zero; small: four beside each other."""
    scale = (
        [[0, "var(--qk)"], [0.5, "var(--panel)"], [1, "var(--dropped)"]]
        if colour is None
        else [[0, "var(--paper)"], [1, f"var(--{colour})"]]
    )
    fig = plain_figure(height=250 if small else max(260, min(420, 90 + 22 * len(y))))
    fig.add_heatmap(
        z=values,
        x=list(range(len(x))),
        y=list(range(len(y))),
        zmin=low,
        zmax=high,
        colorscale=scale,
        xgap=1,
        ygap=1,
        colorbar={"thickness": 8, "outlinewidth": 0, "len": 1, "nticks": 3 if small else 5},
        hovertext=hover,
        hoverinfo="text",
        hoverongaps=False,
    )
    for axis, labels in ((fig.update_xaxes, x), (fig.update_yaxes, y)):
        step = max(1, -(-len(labels) // (7 if small else 14)))
        axis(
            tickvals=list(range(0, len(labels), step)),
            ticktext=labels[::step],
            showgrid=False,
            rangemode="normal",
        )
    fig.update_layout(margin={"l": 44 if small else 60, "r": 4, "t": 8, "b": 46})
    return fig


def _point(point: int) -> str:
    return "the embedding" if point == 0 else f"block {point - 1}"


def _short(name: str) -> str:
    return name.removeprefix("blocks.")
