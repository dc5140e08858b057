"""Where values lie on an axis, and which of them get a tick."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from secateur.report.drawing.chart import Axis, Box, Boxes, Chart, Line

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An axis with its range, between two places in pixels."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value; what is beyond the range lies on its edge."""
        low, high = self.low, self.high
        if self.axis.scale == "log":
            value, low, high = (math.log10(max(v, 1e-300)) for v in (value, low, high))
        share = (value - low) / (high - low) if high != low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Values with their labels, not many more than `most`."""
        low, high = sorted((self.low, self.high))
        if self.axis.ticks is not None:
            own = [tick for tick in self.axis.ticks if low <= tick[0] <= high]
            return own[:: max(1, -(-len(own) // most))]
        if self.axis.scale == "log":
            values = _decades(low, high, most)
            return [(value, f"{value:g}") for value in values]
        step = _step((high - low) / max(most, 1))
        if self.axis.form == "count":
            step = max(step, 1.0)
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        values = [n * step for n in range(first, last + 1)]
        return [(value, _label(self.axis, value, step)) for value in values]


def place(axis: Axis, values: Iterable[float], start: float, end: float) -> Placed:
    """Put an axis between two pixels; its range holds all values unless it has one of its own."""
    found = [value for value in values if math.isfinite(value)]
    if axis.scale == "log":
        found = [value for value in found if value > 0]
    low = min(found, default=0.1) if axis.low is None else axis.low
    high = max(found, default=1.0) if axis.high is None else axis.high
    if axis.scale == "log":
        low, high = (low if axis.low else low / 1.25), (high if axis.high else high * 1.25)
    else:
        room = 0.04 * (high - low or abs(high) or 1.0)
        # WHY: what cannot be negative, such as a loss, has no room below zero.
        under = min(room, low) if low >= 0 else room
        low = low - under if axis.low is None else low
        high = high + room if axis.high is None else high
    if high == low or (high < low and axis.low is None):
        high = low + (abs(low) or 1.0)
    return Placed(axis=axis, low=low, high=high, start=start, end=end)


def extent(chart: Chart) -> tuple[list[float], list[float]]:
    """All values that the marks of a chart have along x and along y."""
    xs: list[float] = []
    ys: list[float] = [rule.y for rule in chart.rules]
    for mark in chart.marks:
        more_x, more_y = _of_line(mark) if isinstance(mark, Line) else _of_boxes(mark)
        xs += more_x
        ys += more_y
    return xs, ys


def _of_line(line: Line) -> tuple[list[float], list[float]]:
    return list(line.x), [*(y for y in line.y if y is not None), *line.low, *line.high]


def _of_boxes(boxes: Boxes) -> tuple[list[float], list[float]]:
    def ends(box: Box) -> tuple[list[float], list[float]]:
        return [box.x0, box.x1], [box.y0, box.y1]

    pairs = [ends(box) for box in boxes.boxes]
    return [x for xs, _ in pairs for x in xs], [y for _, ys in pairs for y in ys]


def _step(least: float) -> float:
    """The next of 1, 2, 2.5, 5, 10, ... from `least` on."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= least * (1 - 1e-9))


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**e for e in range(first, last + 1) for m in factors]
        values = [value for value in values if low <= value <= high]
        if len(values) <= most:
            return values
    return values[:: -(-len(values) // most)]


def _label(axis: Axis, value: float, step: float) -> str:
    if axis.form == "percent":
        return f"{_digits(100 * value, 100 * step)} %"
    if axis.form == "count" and value:
        for scale, unit in _SCALES:
            if abs(value) >= scale * 0.9995:
                return f"{value / scale:g} {unit}"
    return _digits(value, step)


def _digits(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    elif not digits and step != round(step):
        digits = 1
    return f"{value + 0.0:.{digits}f}".replace("-", "−")
