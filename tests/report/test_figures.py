import json
from typing import Any

import pytest
from jinja2 import DictLoader

from secateur.report import figures
from secateur.report.colours import DARK, LIGHT
from secateur.report.figures import figure_html, macs_figure, plain_figure, shares_figure
from secateur.report.record import RunRecord


def test_bars_show_the_macs_of_every_branch(record: dict[str, Any]) -> None:
    run = RunRecord.model_validate(record)
    attention = [b for b in record["branches"] if b["kind"] == "attention"]
    dense, pruned, mlp_dense, mlp_pruned, dropped = macs_figure(run).data
    assert list(dense.y) == [b["macs"]["dense"] for b in attention]
    assert list(pruned.y) == [b["macs"]["pruned"] for b in attention]
    assert min(pruned.y) == 0 and len(dropped.x) == 1
    assert sum(mlp_pruned.y) < sum(mlp_dense.y)
    assert list(pruned.x) < list(mlp_pruned.x)


def test_lines_show_only_groups_that_changed(record: dict[str, Any]) -> None:
    shares = shares_figure(RunRecord.model_validate(record))
    assert shares is not None
    lines = {trace.name: list(trace.y) for trace in shares.data}
    assert set(lines) == {"query/key dims", "MLP neurons"}
    gone = [b["kept"] is None for b in record["branches"] if b["kind"] == "attention"]
    assert lines["query/key dims"] == [None if g else 0.5 for g in gone]


def test_no_lines_where_only_layers_were_dropped(record: dict[str, Any]) -> None:
    for branch in record["branches"]:
        branch["kept"] = None if branch["block"] == 1 else branch["dense"]
    assert shares_figure(RunRecord.model_validate(record)) is None


def test_figures_are_data_that_cannot_leave_their_element() -> None:
    fig = plain_figure(height=200, x_title="</script><b>")
    fig.add_bar(x=[1, 2], y=[3.0, 4.0], name="</script>")
    html = str(figure_html(fig, label='a "label" <i>'))
    assert html.count("</script>") == 1
    assert 'aria-label="a &#34;label&#34; &lt;i&gt;"' in html
    data = json.loads(html.partition('json">')[2].partition("</script>")[0])
    assert data["data"][0]["name"] == "</script>" and data["layout"]["height"] == 200


def test_other_pages_can_build_on_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = figures._environment()
    own = '{% extends "page.html.j2" %}{% block content %}{{ text }}{{ chart }}{% endblock %}'
    base = environment.loader
    assert base is not None
    loader = DictLoader(
        {name: base.get_source(environment, name)[0] for name in ("page.html.j2", "style.css")}
        | {"own.html.j2": own}
    )
    monkeypatch.setattr(environment, "loader", loader)
    chart = figure_html(plain_figure(), label="empty")
    html = figures.page("own.html.j2", text="<b>", chart=chart)
    assert "&lt;b&gt;" in html and '<div class="chart"' in html and "plotly.js v" in html
    assert "plotly.js v" not in figures.page("own.html.j2", text="", chart="", charts=False)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_contrast_with_the_paper(colours: dict[str, str]) -> None:
    assert colours.keys() == LIGHT.keys()
    for name, colour in colours.items():
        if name in ("paper", "panel", "line"):
            continue
        bright, dim = sorted((luminance(colour), luminance(colours["paper"])), reverse=True)
        least = 4.5 if name.endswith("-text") or name in ("ink", "muted") else 3.0
        assert (bright + 0.05) / (dim + 0.05) >= least, name
