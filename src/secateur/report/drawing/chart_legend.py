"""Which mark is which: names at the ends of lines, a legend on top, a ladder of shades."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from secateur.report.drawing.axes import Placed
from secateur.report.drawing.chart import Boxes, Chart, Line, Mark
from secateur.report.drawing.colours import LIGHT
from secateur.report.drawing.svg import draw, px, symbol, text

Paint = Callable[[str], str]
EM = 6.6
"""Mean width of a character of 12 px, on the safe side."""
ROW = 18.0
DASHES = {"solid": "", "dash": "7 4", "dot": "2 4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """What drawing needs to know: axes in pixels, colours, the element to draw into."""

    root: Element
    x: Placed
    y: Placed
    paint: Paint


def end_labels(area: Area, lines: Sequence[Line]) -> None:
    """Names in a column at the right, none over another, each led to the end of its line."""
    ends = []
    for line in lines:
        known = [
            (area.x(x), area.y(y)) for x, y in zip(line.x, line.y, strict=True) if y is not None
        ]
        if known:
            x, y = max(known)
            ends.append((y, x, line))
    ends.sort(key=lambda end: end[0])
    places = _apart([y for y, _, _ in ends], 15.0, area.y.end + 2, area.y.start)
    for (y, x, line), at in zip(ends, places, strict=True):
        colour = area.paint(text_colour(line.colour))
        lead = f"M{px(x + line.size + 2)} {px(y)}L{px(area.x.end + 12)} {px(at)}h4"
        draw(area.root, "path", d=lead, fill="none", stroke=colour, stroke_opacity="0.5",
              stroke_width="0.8")  # fmt: skip
        text(area.root, area.x.end + 19, at + 4, line.name, fill=colour)


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted places moved as little as a greedy walk needs, at least `gap` apart."""
    found: list[float] = []
    for place_ in places:
        found.append(max(place_, found[-1] + gap if found else low))
    limit = high
    for i in reversed(range(len(found))):
        found[i] = min(found[i], limit)
        limit = found[i] - gap
    return found


def text_colour(name: str) -> str:
    """The shade of a colour in which text can be read."""
    return f"{name}-text" if f"{name}-text" in LIGHT else name


def rows_of(names: Sequence[Mark], width: float) -> list[list[tuple[float, Mark]]]:
    """Entries of a legend with their places, broken into rows."""
    rows: list[list[tuple[float, Mark]]] = []
    x = width
    for mark in names:
        wide = 34 + EM * len(mark.name)
        if not rows or x + wide > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, mark))
        x += wide
    return rows


def legend(area: Area, entries: Sequence[Sequence[tuple[float, Mark]]], top: float) -> None:
    """Draw the rows of a legend from `top` on."""
    for number, row in enumerate(entries):
        y = top + ROW * number + 10
        for x, mark in row:
            colour = area.paint(mark.colour)
            if isinstance(mark, Boxes):
                pale = {"stroke": colour, "fill_opacity": "0.13"} if mark.outline else {}
                draw(area.root, "rect", x=x, y=y - 6, width=14, height=11, fill=colour, **pale)
            else:
                fill = "paper" if mark.hollow else mark.colour
                if mark.line:
                    dash = {"stroke_dasharray": DASHES[mark.dash]} if DASHES[mark.dash] else {}
                    draw(area.root, "path", d=f"M{px(x)} {px(y)}h18", stroke=colour,
                          stroke_width="2", fill="none", **dash)  # fmt: skip
                if mark.dots:
                    draw(area.root, "path", d=symbol(mark.symbol, x + 9, y, 4), stroke=colour,
                          fill=area.paint(fill), stroke_width="1.5")  # fmt: skip
            text(area.root, x + 23, y + 4, mark.name, fill=area.paint("ink"))


def shades(area: Area, chart: Chart) -> None:
    """A ladder of shades at the right, with what its ends mean."""
    for colour, low, high in chart.shades:
        x, top, bottom = area.x.end + 12, area.y.end, area.y.start
        steps = 6
        for i in range(steps):
            share = i / (steps - 1)
            height = (bottom - top) / steps
            own, strength = (colour, share)
            if "/" in colour:
                own = colour.split("/")[share > 0.5]
                strength = abs(2 * share - 1)
            draw(area.root, "rect", x=x, y=bottom - height * (i + 1), width=8, height=height,
                  fill=area.paint(own), fill_opacity=f"{strength:.2f}")  # fmt: skip
        text(area.root, x + 12, top + 9, high, fill=area.paint("muted"))
        text(area.root, x + 12, bottom, low, fill=area.paint("muted"))
