"""The picture of a model as SVG: dense outlines along the stream, filled with what is left.

Colours are attributes for a light background, so that the file stands alone; a page overrides
them by class. The SVG has no script, no style sheet and no reference to anything outside.
"""

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from secateur.report.drawing.anatomy_layout import (
    LEFT,
    LINE,
    Box,
    Layout,
    Row,
    cell_gap,
    lay_out,
    parts,
)
from secateur.report.drawing.colours import LIGHT
from secateur.report.record import AttentionSize, BranchRecord, Group, RunRecord, kept_share
from secateur.report.words import GROUP_NAMES, change, count, percent, size_lines

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
LANES: tuple[Group, ...] = ("qk", "vo", "hidden")


def anatomy_svg(record: Mapping[str, object]) -> str:
    """Draw the model of a run's record as a standalone SVG file on a light background."""
    return svg(RunRecord.model_validate(record), heading=True)


def svg(record: RunRecord, *, heading: bool) -> str:
    """The picture; with `heading` it has a title of its own and a background."""
    layout = lay_out(record.branches, heading=heading)
    margin = 24.0 if heading else 0.0
    width, height = layout.width + 2 * margin, layout.height + margin
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"{_px(-margin)} 0 {_px(width)} {_px(height)}",
            "width": _px(width),
            "height": _px(height),
            "class": "anatomy",
            "role": "img",
            "aria-label": _summary(record),
            "font-family": FONT,
            "font-size": "11",
        },
    )
    if heading:
        SubElement(root, "title").text = _summary(record)
        _draw(root, "rect", "paper", x=-margin, width=width, height=height, fill=LIGHT["paper"])
        _heading(root, record)
    _legend(root, record, layout)
    for index, row in enumerate(layout.rows):
        _row(root, row, index, layout, record.width.kept if record.width else 1.0)
    _foot(root, record, layout)
    indent(root)
    return tostring(root, encoding="unicode")


def _heading(root: Element, record: RunRecord) -> None:
    title = record.model or "A vision transformer"
    _text(root, "ink", 0, 34, title, {"font-size": "19", "font-weight": "600"})
    line = (
        f"{change(record.macs.dense, record.macs.pruned)}MACs · "
        f"{change(record.params.dense, record.params.pruned)} parameters"
    )
    _text(root, "muted", 0, 54, line, {"font-size": "13"})


def _legend(root: Element, record: RunRecord, layout: Layout) -> None:
    x, y = 0.0, layout.top + 14
    for group in LANES:
        share = kept_share(record.branches, group)
        if share is None:
            continue
        _swatch(root, group, x, y)
        label = f"{GROUP_NAMES[group]}, {percent(share, 0)} left"
        _text(root, "ink", x + 20, y + 4, label, {"font-size": "12"})
        x += 34 + 6.3 * len(label)
    _swatch(root, "ghost removed", x, y)
    _text(root, "ink", x + 20, y + 4, "removed", {"font-size": "12"})
    if any(branch.kept is None for branch in record.branches):
        _strike(root, x + 84, y - 5, 14, 10)
        _text(root, "ink", x + 104, y + 4, "layer dropped", {"font-size": "12"})


def _row(root: Element, row: Row, index: int, layout: Layout, across: float) -> None:
    group = SubElement(root, "g", {"class": "stretch"})
    _gutter(group, row, index)
    _draw(
        group,
        "path",
        "stem",
        d=f"M{_px(LEFT - 8)} {_px(row.y)}H{_px(row.end)}",
        fill="none",
        stroke=LIGHT["stem"],
        stroke_width="2",
    )
    if row is layout.rows[-1]:
        tip = f"M{_px(row.end)} {_px(row.y - 4.5)}l8 4.5l-8 4.5z"
        _draw(group, "path", "tip", d=tip, fill=LIGHT["stem"])
    else:
        _draw(group, "circle", "tip", cx=row.end + 5, cy=row.y, r=1.2, fill=LIGHT["stem"])
        _draw(group, "circle", "tip", cx=row.end + 10, cy=row.y, r=1.2, fill=LIGHT["stem"])
    for column in row.columns:
        for box in column.boxes:
            _branch(group, box, row.y, layout.label, across)
        _bead(group, column.x, row.y, column.number)


def _gutter(group: Element, row: Row, index: int) -> None:
    """What the lanes are, at the left of a row."""
    boxes = [box for column in row.columns for box in column.boxes]
    for kind, title in (("attention", "attention"), ("mlp", "MLP")):
        box = next((box for box in boxes if box.branch.kind == kind), None)
        if box is None:
            continue
        names = {"qk": "query/key", "vo": "value", "hidden": "neurons"}
        for name, (top, height) in parts(box).items():
            _text(
                group, "muted", LEFT - 8, top + height / 2 + 4, names[name], {"text-anchor": "end"}
            )
        edge = box.y - LINE if kind == "attention" else box.y + box.height + LINE
        if index == 0 and box.height > 40:
            _text(group, "ink", LEFT - 8, edge, title, {"text-anchor": "end", "font-weight": "600"})
    if index == 0:
        _text(group, "muted", LEFT - 14, row.y + 4, "stream", {"text-anchor": "end"})


def _branch(parent: Element, box: Box, stem: float, label: float, across: float) -> None:
    branch = box.branch
    state = "dropped" if branch.kept is None else "kept"
    group = SubElement(
        parent, "g", {"class": f"branch {branch.kind} {state}", "data-branch": branch.id}
    )
    SubElement(group, "title").text = _tooltip(branch)
    _labels(group, box, label)
    if branch.kept is None:
        _strike(group, box.x, box.y, box.width, box.height)
        return
    near = box.y + box.height if branch.kind == "attention" else box.y
    stalk = f"M{_px(box.middle)} {_px(stem)}V{_px(near)}"
    _draw(group, "path", "stem", d=stalk, fill="none", stroke=LIGHT["stem"], stroke_width="2")
    for name, (top, height) in parts(box).items():
        _lane(group, box, name, top, height, across)


def _lane(group: Element, box: Box, name: str, top: float, height: float, across: float) -> None:
    """One part of a box: its dense cells in outline, then what is left from the stream's side.

    `across` is the share of the stream's channels that are left; it makes cells narrower.
    """
    before, after = box.branch.dense, box.branch.kept
    cells = kept = 1
    if isinstance(before, AttentionSize) and isinstance(after, AttentionSize):
        cells, kept = before.heads, after.heads
    share = getattr(after, name) / max(getattr(before, name), 1)
    left = height * share
    start = top if name == "hidden" else top + height - left
    ghost = _cells(box.x, top, box.width, height, cells, cells)
    _draw(
        group,
        "path",
        f"ghost {name}",
        d=ghost,
        fill=LIGHT[name],
        fill_opacity="0.12",
        stroke=LIGHT[name],
        stroke_opacity="0.45",
        stroke_width="0.75",
    )
    solid = _cells(box.x, start, box.width, left, cells, kept, across)
    _draw(group, "path", f"solid {name}", d=solid, fill=LIGHT[name])


def _cells(
    x: float, y: float, width: float, height: float, cells: int, drawn: int, across: float = 1.0
) -> str:
    """A path of the first `drawn` of `cells` rectangles side by side."""
    gap = cell_gap(width, cells)
    step = (width + gap) / cells
    wide = (step - gap) * across
    return "".join(
        f"M{_px(x + i * step)} {_px(y)}h{_px(wide)}v{_px(height)}h{_px(-wide)}z"
        for i in range(drawn)
    )


def _labels(group: Element, box: Box, size: float) -> None:
    """Sizes beside a box, away from the stream."""
    middle = {"text-anchor": "middle", "font-size": _px(size)}
    lines = list(size_lines(box.branch).items())
    if box.branch.kept is None:
        lines = [("dropped", "dropped")]
    above = box.branch.kind == "attention"
    for i, (name, text) in enumerate(lines):
        y = box.y - 6 - LINE * (len(lines) - 1 - i) if above else box.y + box.height + LINE
        tone = "muted" if "→" not in text and name != "dropped" else name
        _text(group, f"label {tone}", box.middle, y, text, middle, colour=f"{tone}-text")


def _strike(group: Element, x: float, y: float, width: float, height: float) -> None:
    """An empty dashed outline, crossed out."""
    line = {"fill": "none", "stroke": LIGHT["dropped"], "stroke_opacity": "0.8"}
    outline = f"M{_px(x)} {_px(y)}h{_px(width)}v{_px(height)}h{_px(-width)}z"
    _draw(group, "path", "outline", d=outline, stroke_dasharray="4 3", **line)
    cross = f"M{_px(x)} {_px(y + height)}l{_px(width)} {_px(-height)}"
    _draw(group, "path", "strike", d=cross, **line)


def _bead(group: Element, x: float, y: float, number: int) -> None:
    _draw(
        group,
        "circle",
        "bead",
        cx=x,
        cy=y,
        r=9.5,
        fill=LIGHT["paper"],
        stroke=LIGHT["stem"],
        stroke_width="1.5",
    )
    _text(group, "ink", x, y + 3.6, str(number), {"text-anchor": "middle", "font-size": "10"})


def _swatch(group: Element, name: str, x: float, y: float) -> None:
    colour = LIGHT[name.split()[-1]]
    kind = "ghost" if name.startswith("ghost") else "solid"
    extra = {"fill_opacity": "0.12", "stroke": colour, "stroke_opacity": "0.45"}
    _draw(
        group,
        "rect",
        name if kind == "ghost" else f"solid {name}",
        x=x,
        y=y - 5,
        width=14,
        height=10,
        fill=colour,
        **(extra if kind == "ghost" else {}),
    )


def _foot(root: Element, record: RunRecord, layout: Layout) -> None:
    rest = record.params.dense - sum(branch.params.dense for branch in record.branches)
    text = "Areas are proportional to parameters."
    if record.width is not None and record.width.kept < 1:
        text += f" Stream width {record.width.dense} → {record.width.pruned}."
    if rest > 0:
        text += f" Embedding, final norm and head ({count(rest)}) not drawn."
    _text(root, "muted", 0, layout.height - 12, text, {"font-size": "11.5"})


def _summary(record: RunRecord) -> str:
    gone = sum(branch.kept is None for branch in record.branches)
    text = (
        f"{record.model or 'Model'}: {percent(record.params.kept)} of the parameters and "
        f"{percent(record.macs.kept)} of the MACs are left"
    )
    return text + (f"; {gone} of {len(record.branches)} layers dropped." if gone else ".")


def _tooltip(branch: BranchRecord) -> str:
    lines = [f"{branch.id} ({'attention' if branch.kind == 'attention' else 'MLP'})"]
    if branch.kept is None:
        lines.append("dropped")
    for name, text in size_lines(branch).items():
        lines.append(f"{GROUP_NAMES[name]} {text}")
    for title, pair in (("MACs", branch.macs), ("parameters", branch.params)):
        lines.append(f"{title} {change(pair.dense, pair.pruned)} ({percent(pair.kept)} left)")
    return "\n".join(lines)


def _text(
    parent: Element,
    kind: str,
    x: float,
    y: float,
    text: str,
    attributes: Mapping[str, str],
    colour: str | None = None,
) -> None:
    place = {"class": kind, "x": _px(x), "y": _px(y), "fill": LIGHT[colour or kind]}
    SubElement(parent, "text", {**place, **attributes}).text = text


def _draw(parent: Element, shape: str, kind: str, **attributes: str | float) -> None:
    values = {
        name.replace("_", "-"): value if isinstance(value, str) else _px(value)
        for name, value in attributes.items()
    }
    SubElement(parent, shape, {"class": kind, **values})


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
