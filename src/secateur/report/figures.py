"""Pieces of pages: charts in the house style, and the template that every page is built on.

Charts are plotly figures whose colours are CSS variables (`var(--qk)`), resolved in the browser,
so that they follow the page into dark mode. Pages embed plotly.js once and fetch nothing.
"""

from functools import cache
from html import escape

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from secateur.report.colours import DARK, LIGHT, style_variables
from secateur.report.record import GROUPS, BranchRecord, RunRecord, blocks_of
from secateur.report.words import GROUP_NAMES, count, percent, size_lines

MARKERS = {"qk": "circle", "vo": "square", "heads": "diamond", "hidden": "triangle-up"}
LABELS = {"attention": "attention", "mlp": "MLP"}


def page(template: str, **values: object) -> str:
    """Fill a template that extends `page.html.j2`; everything given is escaped unless Markup."""
    return _environment().get_template(template).render(**values)


def figure_html(fig: go.Figure, *, label: str) -> Markup:
    """A chart for a page; `label` says in words what it shows, to those who cannot see it."""
    data = Markup(fig.to_json().replace("<", "\\u003c").replace(">", "\\u003e"))
    return Markup(
        '<div class="chart" role="img" aria-label="{label}" style="height: {height}px">'
        '<script type="application/json">{data}</script></div>'
    ).format(label=label, height=int(fig.layout.height), data=data)


def plain_figure(*, height: int = 300, x_title: str = "", y_title: str = "") -> go.Figure:
    """An empty figure in the house style, to add traces to."""
    axis = {
        "showline": False,
        "zeroline": False,
        "ticks": "",
        "fixedrange": True,
        "title": {"font": {"size": 12}, "standoff": 8},
    }
    fig = go.Figure()
    fig.update_layout(
        template="none",
        height=height,
        margin={"l": 52, "r": 12, "t": 30, "b": 42},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12},
        hoverlabel={"bgcolor": "var(--ink)", "bordercolor": "var(--ink)", "align": "left"},
        hoverlabel_font={"color": "var(--paper)", "size": 12},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        xaxis={**axis, "showgrid": False, "title_text": x_title},
        yaxis={**axis, "showgrid": True, "title_text": y_title, "rangemode": "tozero"},
    )
    return fig


def macs_figure(record: RunRecord) -> go.Figure:
    """MACs of every branch, dense (outline) and pruned (filled), in stream order."""
    blocks = blocks_of(record.branches)
    fig = plain_figure(x_title="block", y_title="MACs")
    places = list(_places(blocks))
    for kind, colour in (("attention", "attention"), ("mlp", "hidden")):
        own = [(x, width, branch) for x, width, branch in places if branch.kind == kind]
        if not own:
            continue
        xs, widths = [x for x, _, _ in own], [width for _, width, _ in own]
        hover = [_macs_hover(branch) for _, _, branch in own]
        fig.add_bar(
            x=xs,
            width=widths,
            y=[branch.macs.dense for _, _, branch in own],
            marker={
                "color": f"var(--{colour}-pale)",
                "line": {"color": f"var(--{colour}-faint)", "width": 1},
            },
            hovertext=hover,
            hoverinfo="text",
            showlegend=False,
        )
        fig.add_bar(
            x=xs,
            width=widths,
            y=[branch.macs.pruned for _, _, branch in own],
            marker={"color": f"var(--{colour})"},
            name=LABELS[kind],
            hovertext=hover,
            hoverinfo="text",
        )
    _mark_dropped(fig, [(x, branch) for x, _, branch in places])
    fig.update_layout(barmode="overlay", hovermode="closest")
    _block_axis(fig, blocks)
    return fig


def shares_figure(record: RunRecord) -> go.Figure | None:
    """Kept share of every group that changed, over depth; None when none did."""
    blocks = blocks_of(record.branches)
    fig = plain_figure(x_title="block", y_title="kept")
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
        fig.add_scatter(
            x=[x for x, _, _ in points],
            y=[share for _, share, _ in points],
            mode="lines+markers",
            name=GROUP_NAMES[group],
            line={"color": f"var(--{group})", "width": 2},
            marker={
                "symbol": MARKERS[group],
                "size": 8,
                "color": f"var(--{group})",
                "line": {"color": "var(--paper)", "width": 1},
            },
            hovertext=[_share_hover(branch, group) for _, _, branch in points],
            hoverinfo="text",
        )
    if not fig.data:
        return None
    fig.update_yaxes(range=[0, 1.04], tickformat=".0%", dtick=0.25)
    _block_axis(fig, blocks)
    return fig


def _places(blocks: list[list[BranchRecord]]) -> list[tuple[float, float, BranchRecord]]:
    """Centre and width of every branch's bar; a block is one unit wide."""
    return [
        (x + (i + 0.5) * 0.84 / len(block) - 0.42, 0.8 / len(block), branch)
        for x, block in enumerate(blocks)
        for i, branch in enumerate(block)
    ]


def _mark_dropped(fig: go.Figure, places: list[tuple[float, BranchRecord]]) -> None:
    gone = [(x, branch) for x, branch in places if branch.kept is None]
    if gone:
        fig.add_scatter(
            x=[x for x, _ in gone],
            y=[0.03 * max(branch.macs.dense for _, branch in places)] * len(gone),
            mode="markers",
            name="dropped",
            marker={"symbol": "x-thin", "size": 8, "line": {"color": "var(--dropped)", "width": 2}},
            hovertext=[_macs_hover(branch) for _, branch in gone],
            hoverinfo="text",
        )


def _block_axis(fig: go.Figure, blocks: list[list[BranchRecord]]) -> None:
    step = max(1, len(blocks) // 16)
    fig.update_xaxes(
        range=[-0.6, len(blocks) - 0.4],
        tickvals=list(range(0, len(blocks), step)),
        ticktext=[str(block[0].block) for block in blocks[::step]],
    )


def _macs_hover(branch: BranchRecord) -> str:
    left = "dropped" if branch.kept is None else f"{percent(branch.macs.kept)} left"
    return (
        f"<b>{escape(branch.id)}</b><br>{count(branch.macs.dense)}MACs dense<br>"
        f"{count(branch.macs.pruned)}MACs pruned, {left}"
    )


def _share_hover(branch: BranchRecord, group: str) -> str:
    sizes = size_lines(branch)
    text = sizes.get(group) or ", ".join(sizes.values())
    return f"<b>{escape(branch.id)}</b><br>{GROUP_NAMES[group]} {text}"


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
        "plotly_js": Markup(get_plotlyjs().replace("</script", "<\\/script")),
        "light": Markup(style_variables(LIGHT)),
        "dark": Markup(style_variables(DARK)),
        "bands": [name for name in LIGHT if not name.endswith("-text")],
    }
    return environment
