"""Draw a chart as SVG: for a page, whose style sheet colours it, or as a file that stands alone.

The SVG has no script and no reference to anything outside; hover texts are `title` elements.
"""

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from secateur.report.drawing.anatomy_picture import FONT
from secateur.report.drawing.axes import extent, place
from secateur.report.drawing.chart import Boxes, Chart, Line
from secateur.report.drawing.chart_legend import (
    DASHES,
    EM,
    ROW,
    Area,
    Paint,
    end_labels,
    legend,
    rows_of,
    shades,
)
from secateur.report.drawing.colours import LIGHT
from secateur.report.drawing.svg import draw, px, symbol, text

DIRECT = 600.0
"""From this width on, names stand beside the ends of their lines."""


def page_paint(name: str) -> str:
    """A colour of the page's style sheet."""
    return f"var(--{name})"


def file_paint(name: str) -> str:
    """A colour on a light background."""
    return LIGHT[name]


def chart_svg(
    chart: Chart, width: float, *, paint: Paint = page_paint, label: str = "", title: str = ""
) -> str:
    """The chart, `width` pixels wide; `label` says in words what it shows.

    With a `title` it is a file by itself, with a background.
    """
    return tostring(_drawn(chart, width, paint, label, title), encoding="unicode")


def file_svg(panels: Sequence[tuple[str, Chart]], width: float) -> str:
    """Charts with their titles, one below the other, as a file on a light background."""
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"})
    y = wide = 0.0
    for title, chart in panels:
        panel = _drawn(chart, width, file_paint, title, title)
        del panel.attrib["xmlns"]
        panel.set("y", px(y))
        y += float(panel.get("height", "0"))
        wide = float(panel.get("width", "0"))
        root.append(panel)
    root.attrib |= {"width": px(wide), "height": px(y), "viewBox": f"0 0 {px(wide)} {px(y)}"}
    root.set("aria-label", "; ".join(title for title, _ in panels))
    indent(root, space="")
    return tostring(root, encoding="unicode") + "\n"


def _drawn(chart: Chart, width: float, paint: Paint, label: str, title: str) -> Element:
    names = [mark for mark in chart.marks if mark.legend and mark.name]
    direct = chart.direct and width >= DIRECT and all(isinstance(mark, Line) for mark in names)
    margin = 24.0 if title else 0.0
    rows = [] if direct else rows_of(names, width)
    head = (34.0 if title else 0.0) + ROW * len(rows) + 10
    right = 12.0 + (max((EM * len(mark.name) for mark in names), default=0) + 22 if direct else 0)
    ends = [words for _, words in (chart.x.ticks or ())[-1:]] or ["100 %"]
    right = max(right, 4 + EM * len(ends[0]) / 2, *(28 + EM * len(s[2]) for s in chart.shades))
    foot = 26.0 + (18.0 if chart.x.title else 0.0)
    if chart.x.slanted:
        foot += 0.64 * EM * max((len(words) for _, words in chart.x.ticks or ()), default=0)
    xs, ys = extent(chart)
    y = place(chart.y, ys, chart.height - foot, head + (24 if chart.y.title else 4))
    ticks = y.ticks(max(2, int(chart.height / 48)))
    left = 14 + EM * max((len(words) for _, words in ticks), default=0)
    x = place(chart.x, xs, left, width - right)
    root = _root(width, chart.height, margin, label, paint, title)
    area = Area(root=root, x=x, y=y, paint=paint)
    _axes(area, ticks, chart, head)
    for mark in chart.marks:
        if isinstance(mark, Line) and mark.band:
            _band(area, mark)
    for mark in chart.marks:
        if isinstance(mark, Boxes):
            _boxes(area, mark)
        else:
            _line(area, mark)
    for rule in chart.rules:
        _rule(area, rule.y, rule.label, DASHES[rule.dash])
    if direct:
        end_labels(area, [mark for mark in names if isinstance(mark, Line)])
    legend(area, rows, head - 10 - ROW * len(rows))
    shades(area, chart)
    return root


def _root(
    width: float, height: float, margin: float, label: str, paint: Paint, title: str
) -> Element:
    attributes = {
        "viewBox": f"{px(-margin)} {px(-margin / 2)} {px(width + 2 * margin)} "
        f"{px(height + margin)}",
        "role": "img",
        "aria-label": label or title,
        "font-size": "12",
    }
    if title:
        size = {"width": px(width + 2 * margin), "height": px(height + margin)}
        attributes |= {"xmlns": "http://www.w3.org/2000/svg", **size, "font-family": FONT}
    root = Element("svg", attributes)
    if title:
        draw(
            root,
            "rect",
            x=-margin,
            y=-margin / 2,
            width=width + 2 * margin,
            height=height + margin,
            fill=paint("paper"),
        )
        text(root, 0, 20, title, fill=paint("ink"), font_size="17", font_weight="600")
    return root


def _axes(area: Area, ticks: Sequence[tuple[float, str]], chart: Chart, head: float) -> None:
    x, y, paint = area.x, area.y, area.paint
    grid = "".join(f"M{px(x.start)} {px(y(v))}H{px(x.end)}" for v, _ in ticks)
    if chart.y.grid and grid:
        draw(area.root, "path", d=grid, stroke=paint("line"), fill="none")
    for value, words in ticks:
        text(area.root, x.start - 8, y(value) + 4, words, fill=paint("muted"), text_anchor="end")
    _x_labels(area)
    if chart.x.title:
        middle = (x.start + x.end) / 2
        text(
            area.root, middle, y.start + 36, chart.x.title, fill=paint("muted"),
            text_anchor="middle",
        )  # fmt: skip
    if chart.y.title:
        text(area.root, 0, head + 6, chart.y.title, fill=paint("muted"))


def _x_labels(area: Area) -> None:
    x, low, muted = area.x, area.y.start, area.paint("muted")
    longest = max((len(words) for _, words in x.ticks(99)), default=1)
    if x.axis.slanted:
        for value, words in x.ticks(99):
            turn = {"transform": f"rotate(-40 {px(x(value))} {px(low + 14)})"}
            text(area.root, x(value), low + 14, words, fill=muted, text_anchor="end", **turn)
        return
    for value, words in x.ticks(max(2, min(17, int((x.end - x.start) / (EM * longest + 22))))):
        text(area.root, x(value), low + 17, words, fill=muted, text_anchor="middle")


def _band(area: Area, line: Line) -> None:
    if len(line.low) < 2:
        return
    there = [(area.x(x), area.y(high)) for x, high in zip(line.x, line.high, strict=True)]
    back = [(area.x(x), area.y(low)) for x, low in zip(line.x, line.low, strict=True)]
    outline = "L".join(f"{px(x)} {px(y)}" for x, y in [*there, *reversed(back)])
    draw(area.root, "path", d=f"M{outline}Z", fill=area.paint(line.colour), fill_opacity="0.13")


def _line(area: Area, line: Line) -> None:
    paint, stroke = area.paint, area.paint(line.colour)
    opacity = {} if line.opacity == 1 else {"opacity": f"{line.opacity:.2f}"}
    group = SubElement(area.root, "g", {"fill": stroke, "stroke": stroke, **opacity})
    if line.line:
        dash = {"stroke_dasharray": DASHES[line.dash]} if DASHES[line.dash] else {}
        path = _joined(area, line)
        drawn = draw(group, "path", d=path, fill="none", stroke_width=px(line.width),
                     stroke_linejoin="round", **dash)  # fmt: skip
        if not line.dots:
            SubElement(drawn, "title").text = line.name
    if line.low and not line.band:
        bars = "".join(
            f"M{px(area.x(x))} {px(area.y(low))}V{px(area.y(high))}"
            for x, low, high in zip(line.x, line.low, line.high, strict=True)
        )
        draw(group, "path", d=bars, fill="none", stroke_width="1.2")
    if not line.dots:
        return
    fill = paint("paper") if line.hollow else stroke
    edge = stroke if line.hollow or line.symbol == "cross" else paint("paper")
    for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
        if y is None:
            continue
        dot = draw(
            group, "path", d=symbol(line.symbol, area.x(x), area.y(y), line.size),
            fill=fill, stroke=edge, stroke_width="1.8" if edge == stroke else "1",
        )  # fmt: skip
        if line.hover:
            SubElement(dot, "title").text = line.hover[i]


def _joined(area: Area, line: Line) -> str:
    path, pen = "", "M"
    for x, y in zip(line.x, line.y, strict=True):
        if y is None:
            pen = "M"
            continue
        path += f"{pen}{px(area.x(x))} {px(area.y(y))}"
        pen = "L"
    return path


def _boxes(area: Area, boxes: Boxes) -> None:
    colour = area.paint(boxes.colour)
    group = SubElement(area.root, "g", {"fill": colour})
    if boxes.outline:
        group.attrib |= {"stroke": colour, "stroke-opacity": "0.45", "fill-opacity": "0.13"}
    for box in boxes.boxes:
        left, right = sorted((area.x(box.x0), area.x(box.x1)))
        top, bottom = sorted((area.y(box.y0), area.y(box.y1)))
        own = {} if box.colour is None else {"fill": area.paint(box.colour)}
        if box.opacity != 1:
            own["fill_opacity"] = f"{box.opacity:.2f}"
        drawn = draw(group, "rect", x=left, y=top, width=right - left, height=bottom - top, **own)
        if box.hover:
            SubElement(drawn, "title").text = box.hover
        if box.text:
            text(area.root, (left + right) / 2, top - 5, box.text, fill=area.paint("ink"),
                  text_anchor="middle")  # fmt: skip


def _rule(area: Area, value: float, label: str, dash: str) -> None:
    if not min(area.y.low, area.y.high) <= value <= max(area.y.low, area.y.high):
        return
    height = area.y(value)
    draw(
        area.root, "path", d=f"M{px(area.x.start)} {px(height)}H{px(area.x.end)}", fill="none",
        stroke=area.paint("muted"), stroke_width="1.2", stroke_dasharray=dash,
    )  # fmt: skip
    text(
        area.root, area.x.end, height - 5, label, fill=area.paint("muted"), text_anchor="end",
        stroke=area.paint("paper"), stroke_width="3", paint_order="stroke",
    )  # fmt: skip
