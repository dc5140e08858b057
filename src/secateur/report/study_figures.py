"""Charts of a study: degradation over cost with intervals as bands, and ranks beside the oracle."""

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from secateur.report.figures import plain_figure
from secateur.report.study_record import Curve, ModelRecord, OracleRow, Point, Span

STRUCTURES = {
    "attention": ("attention", "circle", "solid"),
    "mlp": ("dropped", "square", "solid"),
    "joint": ("ink", "diamond", "dot"),
    "block": ("stem", "x", "dash"),
    "heads": ("heads", "diamond", "solid"),
    "qk": ("qk", "triangle-up", "solid"),
    "vo": ("vo", "triangle-down", "solid"),
    "hidden": ("hidden", "star", "solid"),
    "own": ("ink", "circle", "longdash"),
}
"""Colour, marker and dash by structure."""
NAMES = {
    "attention": "attention layers",
    "mlp": "MLPs",
    "joint": "attention or MLP",
    "block": "blocks",
    "heads": "heads",
    "qk": "query/key dims",
    "vo": "value dims",
    "hidden": "MLP neurons",
    "own": "presets",
}
PALETTE = ("qk", "vo", "hidden", "heads", "attention", "dropped", "stem", "ink")
DASHES = ("solid", "dash", "dashdot")
CONTROL = "random"


def overview_figure(model: ModelRecord, *, latency: bool) -> go.Figure | None:
    """The best curve of every structure over MACs, or over latency; None without measurements.

    Behind them stands the Pareto front of all structures, scores and repairs.
    """
    timed = latency and model.dense_ms is not None
    x_title = ("ms" if timed else "time left") if latency else "MACs left"
    fig = plain_figure(height=420, x_title=x_title, y_title=_y_title(model))
    lines = []
    for curve in model.best:
        points = [p for p in curve.points if not latency or p.latency is not None]
        points.sort(key=lambda point: -_x(model, point, latency))
        if not points:
            continue
        colour, marker, dash = STRUCTURES[curve.structure]
        xs = [_x(model, point, latency) for point in points]
        name = f"{NAMES[curve.structure]} ({curve.score})"
        fig.add_trace(_band(model, points, xs, colour))
        lines.append(_line(model, points, xs, name, colour, marker, dash))
    if not lines:
        return None
    if front := _front(model, latency):
        fig.add_trace(_front_line(model, front, latency))
    fig.add_traces(lines)
    _dense_line(fig, model)
    _finish(fig, shares=not timed)
    return fig


def _front(model: ModelRecord, latency: bool) -> list[Point]:
    """The points that no other beats in both cost and degradation, dearest first."""
    points = [p for curve in model.curves for p in curve.points]
    points = [p for p in points if not latency or p.latency is not None]
    points.sort(key=lambda point: (_x(model, point, latency), _harm(model, point)))
    front: list[Point] = []
    for point in points:
        if not front or _harm(model, point) < _harm(model, front[-1]):
            front.append(point)
    return front[::-1]


def _harm(model: ModelRecord, point: Point) -> float:
    value = value_of(model, point).mean
    return value if _y_title(model).startswith("KL") else -value


def _front_line(model: ModelRecord, front: Sequence[Point], latency: bool) -> go.Scatter:
    return go.Scatter(
        x=[_x(model, point, latency) for point in front],
        y=[value_of(model, point).mean for point in front],
        mode="lines",
        name="Pareto front of all scores and repairs",
        line={"color": "var(--line)", "width": 9},
        hoverinfo="skip",
    )


def structure_figure(model: ModelRecord, structure: str, repair: str) -> go.Figure | None:
    """Every score on one structure under one repair, over MACs; None where nothing is finished."""
    curves = [c for c in model.curves if (c.structure, c.repair) == (structure, repair)]
    if not curves:
        return None
    fig = plain_figure(height=330, x_title="MACs left", y_title=_y_title(model))
    lines = []
    for number, curve in enumerate(sorted(curves, key=lambda c: c.score == CONTROL)):
        colour = PALETTE[number % len(PALETTE)]
        dash = DASHES[number // len(PALETTE) % len(DASHES)]
        if curve.score == CONTROL:
            colour, dash = "muted", "dot"
        xs = [_x(model, point, False) for point in curve.points]
        fig.add_trace(_band(model, curve.points, xs, colour))
        lines.append(_line(model, curve.points, xs, curve.score, colour, "circle", dash))
    fig.add_traces(lines)
    _dense_line(fig, model)
    _finish(fig, shares=True)
    _same_axes(fig, model)
    return fig


def _same_axes(fig: go.Figure, model: ModelRecord) -> None:
    """The ranges of all charts of single structures, so that they can be compared by eye."""
    points = [point for curve in model.curves for point in curve.points]
    highest = max(
        model.dense.get("top1") or 0.0, *(value_of(model, point).high for point in points)
    )
    fig.update_yaxes(range=[-0.03 * highest, 1.05 * highest])
    least = min(point.macs for point in points)
    fig.update_xaxes(range=[1.0, least - 0.02], autorange=False)


def oracle_figure(rows: Sequence[OracleRow]) -> go.Figure | None:
    """Rank correlation of each score with the oracle, structures side by side."""
    if not rows:
        return None
    fig = plain_figure(height=340, y_title="rank correlation")
    scores = sorted(
        {row.score for row in rows},
        key=lambda score: -max(row.rho for row in rows if row.score == score),
    )
    for structure in dict.fromkeys(row.structure for row in rows):
        own = {row.score: row for row in rows if row.structure == structure}
        names = [score for score in scores if score in own]
        colour, marker, _ = STRUCTURES[structure]
        fig.add_scatter(
            x=names,
            y=[own[name].rho for name in names],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [own[name].high - own[name].rho for name in names],
                "arrayminus": [own[name].rho - own[name].low for name in names],
                "thickness": 1,
                "width": 3,
                "color": f"var(--{colour})",
            },
            mode="markers",
            name=NAMES[structure],
            marker={"symbol": marker, "size": 9, "color": f"var(--{colour})"},
            hovertext=[f"<b>{escape(name)}</b><br>{own[name].rho:+.2f}" for name in names],
            hoverinfo="text",
        )
    fig.update_yaxes(range=[-1.05, 1.05], dtick=0.5, zeroline=True, zerolinecolor="var(--line)")
    return fig


def value_of(model: ModelRecord, point: Point) -> Span:
    """What the charts show of a point: top-1 with labels, else the divergence."""
    if model.dense.get("top1") is not None and point.top1 is not None:
        return point.top1
    return point.kl


def _y_title(model: ModelRecord) -> str:
    return "KL from dense, nats" if model.dense.get("top1") is None else "top-1, %"


def _x(model: ModelRecord, point: Point, latency: bool) -> float:
    """Milliseconds if any were measured, else a share of the dense model's cost."""
    if latency and point.latency is not None:
        return point.latency * (model.dense_ms or 1.0)
    return point.macs


def _band(model: ModelRecord, points: Sequence[Point], xs: list[float], colour: str) -> go.Scatter:
    spans = [value_of(model, point) for point in points]
    return go.Scatter(
        x=[*xs, *reversed(xs)],
        y=[*(span.high for span in spans), *(span.low for span in reversed(spans))],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=f"var(--{colour}-band)",
        hoverinfo="skip",
        showlegend=False,
    )


def _line(
    model: ModelRecord,
    points: Sequence[Point],
    xs: list[float],
    name: str,
    colour: str,
    marker: str,
    dash: str,
) -> go.Scatter:
    return go.Scatter(
        x=xs,
        y=[value_of(model, point).mean for point in points],
        mode="lines+markers",
        name=name,
        line={"color": f"var(--{colour})", "width": 2, "dash": dash},
        marker={"symbol": marker, "size": 8, "color": f"var(--{colour})"},
        hovertext=[_hover(model, name, point) for point in points],
        hoverinfo="text",
    )


def _hover(model: ModelRecord, name: str, point: Point) -> str:
    lines = [f"<b>{escape(name)}</b>", f"{100 * point.macs:.1f} % of the MACs"]
    if point.latency is not None:
        time = f"{100 * point.latency:.1f} % of the time"
        if model.dense_ms is not None:
            time += f" ({point.latency * model.dense_ms:.1f} ms)"
        lines.append(time)
    if point.top1 is not None:
        lines.append(f"top-1 {point.top1.mean:.1f} [{point.top1.low:.1f}, {point.top1.high:.1f}]")
    lines.append(f"KL {point.kl.mean:.3f} [{point.kl.low:.3f}, {point.kl.high:.3f}]")
    return "<br>".join([*lines, f"budget {escape(point.budget)}, {point.draws} draws"])


def _dense_line(fig: go.Figure, model: ModelRecord) -> None:
    top1 = model.dense.get("top1")
    if top1 is not None:
        fig.add_hline(y=top1, line={"color": "var(--muted)", "width": 1, "dash": "dot"})


def _finish(fig: go.Figure, *, shares: bool) -> None:
    fig.update_xaxes(tickformat=".0%" if shares else None, autorange="reversed", showgrid=True)
    fig.update_yaxes(rangemode="normal")
    fig.update_layout(hovermode="closest", margin={"t": 74})


__all__ = ["Curve", "oracle_figure", "overview_figure", "structure_figure"]
