from typing import Any

import pytest
from jinja2 import DictLoader

from secateur.report import figures
from secateur.report.drawing.chart import Axis, Boxes, Chart, Line
from secateur.report.drawing.colours import DARK, LIGHT
from secateur.report.figures import figure_html, macs_figure, shares_figure
from secateur.report.record import RunRecord


def test_bars_show_the_macs_of_every_branch(record: dict[str, Any]) -> None:
    run = RunRecord.model_validate(record)
    attention = [b for b in record["branches"] if b["kind"] == "attention"]
    dense, pruned, mlp_dense, mlp_pruned, dropped = macs_figure(run).marks
    assert isinstance(dense, Boxes) and isinstance(pruned, Boxes) and isinstance(dropped, Line)
    assert isinstance(mlp_dense, Boxes) and isinstance(mlp_pruned, Boxes)
    assert [box.y1 for box in dense.boxes] == [b["macs"]["dense"] for b in attention]
    assert [box.y1 for box in pruned.boxes] == [b["macs"]["pruned"] for b in attention]
    assert min(box.y1 for box in pruned.boxes) == 0 and len(dropped.x) == 1
    assert sum(box.y1 for box in mlp_pruned.boxes) < sum(box.y1 for box in mlp_dense.boxes)
    assert [box.x0 for box in pruned.boxes] < [box.x0 for box in mlp_pruned.boxes]


def test_lines_show_only_groups_that_changed(record: dict[str, Any]) -> None:
    shares = shares_figure(RunRecord.model_validate(record))
    assert shares is not None
    lines = {line.name: list(line.y) for line in shares.lines}
    assert set(lines) == {"query/key dims", "MLP neurons"}
    gone = [b["kept"] is None for b in record["branches"] if b["kind"] == "attention"]
    assert lines["query/key dims"] == [None if g else 0.5 for g in gone]


def test_no_lines_where_only_layers_were_dropped(record: dict[str, Any]) -> None:
    for branch in record["branches"]:
        branch["kept"] = None if branch["block"] == 1 else branch["dense"]
    assert shares_figure(RunRecord.model_validate(record)) is None


def test_text_cannot_leave_its_element() -> None:
    line = Line(name="</svg><b>", x=(1, 2), y=(3.0, 4.0), colour="qk", hover=("<i>", "&"))
    chart = Chart(height=200, x=Axis(title="</script><b>"), marks=(line,))
    html = str(figure_html(chart, label='a "label" <i>', widths=(400,)))
    assert html.count("</svg>") == 1 and "<b>" not in html and "<i>" not in html
    assert 'aria-label="a &quot;label&quot; &lt;i&gt;"' in html
    assert "&lt;/script&gt;" in html and "<title>&lt;i&gt;</title>" in html


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
    chart = figure_html(Chart(), label="empty")
    html = figures.page("own.html.j2", text="<b>", chart=chart)
    assert "&lt;b&gt;" in html and '<div class="chart"' in html and "<script" not in html


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
