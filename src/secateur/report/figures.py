"""Charts of a run's page, and the template that every page is built on.

Charts are drawn here, as SVG whose colours are CSS variables (`var(--qk)`), so that they follow the
page into dark mode; a page has no script and fetches nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from secateur.report.advice import Change
from secateur.report.drawing.chart import Axis, Box, Boxes, Chart, Line, Symbol
from secateur.report.drawing.chart_svg import chart_svg
from secateur.report.drawing.colours import DARK, LIGHT, style_variables
from secateur.report.record import GROUPS, BranchRecord, RunRecord, blocks_of
from secateur.report.words import GROUP_NAMES, count, percent, size_lines

MARKERS: dict[str, Symbol] = {"qk": "circle", "vo": "square", "heads": "diamond", "hidden": "up"}
LABELS = {"attention": "attention", "mlp": "MLP"}
FULL, HALF, QUARTER = (1120.0, 460.0), (544.0, 452.0), (262.0,)
"""Widths in which a chart is drawn; the page shows the one that fits (see style.css)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A headline number; `meter` (0…1) draws a bar, `absent` greys the value out.

    `state` colours a value that is better or worse than before.
    """

    name: str
    value: str
    detail: str = ""
    more: str = ""
    meter: float | None = None
    absent: bool = False
    state: Change | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """A chart with its heading and one sentence on how to read it."""

    title: str
    about: str
    figure: Markup


def page(template: str, **values: object) -> str:
    """Fill a template that extends `page.html.j2`; everything given is escaped unless Markup."""
    return _environment().get_template(template).render(**values)


def figure_html(chart: Chart, *, label: str, widths: tuple[float, ...] = FULL) -> Markup:
    """A chart for a page; `label` says in words what it shows, to those who cannot see it.

    Of several `widths` the page shows the one that has room.
    """
    drawn = [chart_svg(chart, width, label=label) for width in widths]
    names = ["only"] if len(drawn) == 1 else ["broad", "slim"]
    parts = (f'<div class="{name}">{svg}</div>' for name, svg in zip(names, drawn, strict=True))
    return Markup(f'<div class="chart">{"".join(parts)}</div>')


def macs_figure(record: RunRecord) -> Chart:
    """MACs of every branch, dense (outline) and pruned (filled), in stream order."""
    blocks = blocks_of(record.branches)
    places = list(_places(blocks))
    marks: list[Boxes | Line] = []
    for kind, colour in (("attention", "attention"), ("mlp", "hidden")):
        own = [place for place in places if place[2].kind == kind]
        if not own:
            continue
        dense, pruned = (
            tuple(
                Box(x0=x - width / 2, x1=x + width / 2, y0=0, y1=getattr(branch.macs, which),
                    hover=_macs_hover(branch))
                for x, width, branch in own
            )
            for which in ("dense", "pruned")
        )  # fmt: skip
        marks.append(Boxes(name="", colour=colour, boxes=dense, outline=True, legend=False))
        marks.append(Boxes(name=LABELS[kind], colour=colour, boxes=pruned))
    marks += _dropped(places)
    return Chart(
        x=block_axis([str(block[0].block) for block in blocks]),
        y=Axis(title="MACs", low=0, form="count"),
        marks=tuple(marks),
    )


def shares_figure(record: RunRecord) -> Chart | None:
    """Kept share of every group that changed, over depth; None when none did."""
    blocks = blocks_of(record.branches)
    lines = []
    for group in GROUPS:
        points = [
            (x, share, branch)
            for x, block in enumerate(blocks)
            for branch in block
            if group in type(branch.dense).model_fields
            for share in [branch.share(group)]
        ]
        if all(share in (None, 1.0) for _, share, _ in points):
            continue
        lines.append(
            Line(
                name=GROUP_NAMES[group],
                x=tuple(x for x, _, _ in points),
                y=tuple(share for _, share, _ in points),
                colour=group,
                symbol=MARKERS[group],
                hover=tuple(_share_hover(branch, group) for _, _, branch in points),
            )
        )
    if not lines:
        return None
    return Chart(
        x=block_axis([str(block[0].block) for block in blocks]),
        y=Axis(title="kept", low=0, high=1.0, form="percent"),
        marks=tuple(lines),
    )


def block_axis(names: list[str], title: str = "block") -> Axis:
    """An axis along the blocks of a model, which lie at 0, 1, ..."""
    return Axis(
        title=title,
        low=-0.6,
        high=len(names) - 0.4,
        ticks=tuple((float(x), name) for x, name in enumerate(names)),
    )


def left_axis(title: str, shares: Iterable[float]) -> Axis:
    """What is left, as on every page: the whole model at the left, smaller ones to the right."""
    return Axis(title=title, low=1.0, high=max(0.0, min(shares) - 0.02), form="percent")


def _places(blocks: list[list[BranchRecord]]) -> list[tuple[float, float, BranchRecord]]:
    """Centre and width of every branch's bar; a block is one unit wide."""
    return [
        (x + (i + 0.5) * 0.84 / len(block) - 0.42, 0.8 / len(block), branch)
        for x, block in enumerate(blocks)
        for i, branch in enumerate(block)
    ]


def _dropped(places: list[tuple[float, float, BranchRecord]]) -> list[Line]:
    gone = [(x, branch) for x, _, branch in places if branch.kept is None]
    if not gone:
        return []
    low = 0.03 * max(branch.macs.dense for _, _, branch in places)
    return [
        Line(
            name="dropped",
            x=tuple(x for x, _ in gone),
            y=(low,) * len(gone),
            colour="dropped",
            line=False,
            symbol="cross",
            hover=tuple(_macs_hover(branch) for _, branch in gone),
        )
    ]


def _macs_hover(branch: BranchRecord) -> str:
    left = "dropped" if branch.kept is None else f"{percent(branch.macs.kept)} left"
    return (
        f"{branch.id}\n{count(branch.macs.dense)}MACs dense\n"
        f"{count(branch.macs.pruned)}MACs pruned, {left}"
    )


def _share_hover(branch: BranchRecord, group: str) -> str:
    sizes = size_lines(branch)
    text = sizes.get(group) or ", ".join(sizes.values())
    return f"{branch.id}\n{GROUP_NAMES[group]} {text}"


@cache
def _environment() -> Environment:
    loader = PackageLoader("secateur.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "light": Markup(style_variables(LIGHT)),
        "dark": Markup(style_variables(DARK)),
    }
    return environment
