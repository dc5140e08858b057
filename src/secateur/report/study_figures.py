"""Charts of a study: degradation over cost with intervals as bands, and ranks beside the oracle.

What is left of the cost falls from the left to the right, as on every page.
"""

from collections.abc import Sequence
from dataclasses import replace

from secateur.report.drawing.chart import Axis, Chart, Dash, Line, Rule, Symbol
from secateur.report.figures import left_axis
from secateur.report.study_record import Curve, ModelRecord, OracleRow, Point, Span

STRUCTURES: dict[str, tuple[str, Symbol, Dash]] = {
    "attention": ("attention", "circle", "solid"),
    "mlp": ("dropped", "square", "solid"),
    "joint": ("ink", "diamond", "dot"),
    "block": ("stem", "cross", "dash"),
    "heads": ("heads", "diamond", "solid"),
    "qk": ("qk", "up", "solid"),
    "vo": ("vo", "down", "solid"),
    "hidden": ("hidden", "star", "solid"),
    "own": ("ink", "circle", "dash"),
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
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")
CONTROL = "random"


def overview_figure(model: ModelRecord, *, latency: bool) -> Chart | None:
    """The best curve of every structure over MACs, or over latency; None without measurements.

    Behind them stands the Pareto front of all structures, scores and repairs.
    """
    lines = []
    for curve in model.best:
        points = [p for p in curve.points if not latency or p.latency is not None]
        if points:
            name = f"{NAMES[curve.structure]} ({curve.score})"
            line = _line(model, points, name, *STRUCTURES[curve.structure], latency=latency)
            lines.append(beneath(line) if curve.structure == "joint" else line)
    if not lines:
        return None
    front = _front(model, latency)
    lines.sort(key=lambda line: -line.width)
    return Chart(
        height=420,
        x=_cost_axis(model, [x for line in lines for x in line.x], latency),
        y=Axis(title=_y_title(model)),
        marks=(
            *([_front_line(model, front, latency)] if front else []),
            *sorted(lines, key=lambda line: -line.width),
        ),
        rules=_dense_rule(model),
    )


def beneath(line: Line) -> Line:
    """A line that others may lie on: layers of either kind are often all of one kind."""
    return replace(line, width=7, opacity=0.35, dots=False, dash="solid")


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


def _front_line(model: ModelRecord, front: Sequence[Point], latency: bool) -> Line:
    return Line(
        name="Pareto front of all",
        x=tuple(_x(model, point, latency) for point in front),
        y=tuple(value_of(model, point).mean for point in front),
        colour="muted",
        opacity=0.35,
        width=8,
        dots=False,
    )


def structure_figure(model: ModelRecord, structure: str, repair: str) -> Chart | None:
    """Every score on one structure under one repair, over MACs; None where nothing is finished.

    All these charts of a model have the same axes, so that they can be compared by eye.
    """
    curves = [c for c in model.curves if (c.structure, c.repair) == (structure, repair)]
    if not curves:
        return None
    lines = []
    for number, curve in enumerate(sorted(curves, key=lambda c: c.score == CONTROL)):
        colour = PALETTE[number % len(PALETTE)]
        dash = DASHES[number // len(PALETTE) % len(DASHES)]
        if curve.score == CONTROL:
            colour, dash = "muted", "dot"
        lines.append(_line(model, curve.points, curve.score, colour, "circle", dash))
    points = [point for curve in model.curves for point in curve.points]
    highest = max(
        model.dense.get("top1") or 0.0, *(value_of(model, point).high for point in points)
    )
    return Chart(
        height=330,
        x=left_axis("MACs left", [point.macs for point in points]),
        y=Axis(title=_y_title(model), low=-0.03 * highest, high=1.05 * highest),
        marks=tuple(lines),
        rules=_dense_rule(model),
    )


def oracle_figure(rows: Sequence[OracleRow]) -> Chart | None:
    """Rank correlation of each score with the oracle, structures side by side."""
    if not rows:
        return None
    scores = sorted(
        {row.score for row in rows},
        key=lambda score: -max(row.rho for row in rows if row.score == score),
    )
    structures = list(dict.fromkeys(row.structure for row in rows))
    lines = []
    for number, structure in enumerate(structures):
        own = {row.score: row for row in rows if row.structure == structure}
        names = [score for score in scores if score in own]
        colour, symbol, _ = STRUCTURES[structure]
        shift = 0.16 * (number - (len(structures) - 1) / 2)
        lines.append(
            Line(
                name=NAMES[structure],
                x=tuple(scores.index(name) + shift for name in names),
                y=tuple(own[name].rho for name in names),
                low=tuple(own[name].low for name in names),
                high=tuple(own[name].high for name in names),
                colour=colour,
                symbol=symbol,
                line=False,
                hover=tuple(f"{name}\n{own[name].rho:+.2f}" for name in names),
            )
        )
    ticks = tuple((float(place), name) for place, name in enumerate(scores))
    return Chart(
        height=340,
        x=Axis(low=-0.6, high=len(scores) - 0.4, ticks=ticks, slanted=True),
        y=Axis(title="rank correlation", low=-1.05, high=1.05),
        marks=tuple(lines),
        rules=(Rule(y=0.0, label=""),),
        direct=False,
    )


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


def _line(
    model: ModelRecord,
    points: Sequence[Point],
    name: str,
    colour: str,
    symbol: Symbol,
    dash: Dash,
    *,
    latency: bool = False,
) -> Line:
    points = sorted(points, key=lambda point: -_x(model, point, latency))
    spans = [value_of(model, point) for point in points]
    return Line(
        name=name,
        x=tuple(_x(model, point, latency) for point in points),
        y=tuple(span.mean for span in spans),
        low=tuple(span.low for span in spans),
        high=tuple(span.high for span in spans),
        band=True,
        colour=colour,
        symbol=symbol,
        dash=dash,
        hover=tuple(_hover(model, name, point) for point in points),
    )


def _hover(model: ModelRecord, name: str, point: Point) -> str:
    lines = [name, f"{100 * point.macs:.1f} % of the MACs"]
    if point.latency is not None:
        time = f"{100 * point.latency:.1f} % of the time"
        if model.dense_ms is not None:
            time += f" ({point.latency * model.dense_ms:.1f} ms)"
        lines.append(time)
    if point.top1 is not None:
        lines.append(f"top-1 {point.top1.mean:.1f} [{point.top1.low:.1f}, {point.top1.high:.1f}]")
    lines.append(f"KL {point.kl.mean:.3f} [{point.kl.low:.3f}, {point.kl.high:.3f}]")
    return "\n".join([*lines, f"budget {point.budget}, {point.draws} draws"])


def _dense_rule(model: ModelRecord) -> tuple[Rule, ...]:
    top1 = model.dense.get("top1")
    return () if top1 is None else (Rule(y=top1, label="dense", dash="dot"),)


def _cost_axis(model: ModelRecord, values: Sequence[float], latency: bool) -> Axis:
    if not latency:
        return left_axis("MACs left", values)
    if model.dense_ms is None:
        return left_axis("time left", values)
    return Axis(title="ms", low=max(model.dense_ms, *values), high=0.98 * min(values))


__all__ = ["Curve", "oracle_figure", "overview_figure", "structure_figure"]
