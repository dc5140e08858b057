"""A chart as data: two axes and the marks between them, drawn by `chart_svg.py`.

Colours are names of `colours.py`, so that one chart serves a page in either mode and a file that
stands alone. Hover texts are plain text; lines in them are parted by a newline.
"""

from dataclasses import dataclass, field
from typing import Literal

Scale = Literal["linear", "log"]
Dash = Literal["solid", "dash", "dot"]
Symbol = Literal["circle", "square", "diamond", "up", "down", "cross", "star"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis; what is None follows from the marks. `ticks` are places with their labels.
    `slanted` writes long labels along x at an angle. A `low` above `high` turns the axis round.

    `form` is how a number on it is written: "number", "percent" (of one) or "count" (1.2 M).
    """

    title: str = ""
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None
    form: Literal["number", "percent", "count"] = "number"
    ticks: tuple[tuple[float, str], ...] | None = None
    grid: bool = True
    slanted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points in their order, joined where `line`, marked where `dots`; None in `y` breaks it.

    `low` and `high` are intervals of the points, drawn as a band where `band`, else as bars.
    `legend` shows the name in the legend, or beside the end of the line.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    colour: str
    hover: tuple[str, ...] = ()
    line: bool = True
    dots: bool = True
    hollow: bool = False
    symbol: Symbol = "circle"
    dash: Dash = "solid"
    width: float = 2.0
    size: float = 4.0
    opacity: float = 1.0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    band: bool = False
    legend: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle in units of the axes, with a `text` inside or, with `above`, over it."""

    x0: float
    x1: float
    y0: float
    y1: float
    opacity: float = 1.0
    colour: str | None = None
    hover: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Rectangles of one colour, filled or, with `outline`, framed and pale."""

    name: str
    colour: str
    boxes: tuple[Box, ...]
    outline: bool = False
    legend: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A horizontal line across the chart with its label, such as a tolerance."""

    y: float
    label: str
    dash: Dash = "dash"


Mark = Line | Boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of a height in pixels; its width is chosen when it is drawn.

    Marks are drawn in their order. `direct` writes names beside the ends of lines where there is
    room, else into a legend on top. `scale` is a legend of shades: a colour and its two ends.
    """

    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    marks: tuple[Mark, ...] = ()
    rules: tuple[Rule, ...] = ()
    height: float = 300.0
    direct: bool = True
    shades: tuple[tuple[str, str, str], ...] = ()

    @property
    def lines(self) -> list[Line]:
        """The lines among the marks."""
        return [mark for mark in self.marks if isinstance(mark, Line)]

    @property
    def boxes(self) -> list[Boxes]:
        """The boxes among the marks."""
        return [mark for mark in self.marks if isinstance(mark, Boxes)]
