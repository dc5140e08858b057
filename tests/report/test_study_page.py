"""The page of a study says what its record says, opens offline and executes nothing of it."""

import re
from dataclasses import replace
from html import unescape

import pytest

from secateur.report.study_figures import oracle_figure, overview_figure, structure_figure
from secateur.report.study_page import render_study
from secateur.report.study_record import (
    Curve,
    ModelRecord,
    OracleRow,
    Point,
    RepairRow,
    ScoreRow,
    Span,
    StudyRecord,
)
from secateur.report.study_words import findings, p_words


def span(mean: float) -> Span:
    return Span(mean=mean, low=mean - 0.5, high=mean + 0.25)


def point(budget: str, macs: float, latency: float | None, top1: float | None) -> Point:
    return Point(
        budget=budget,
        macs=macs,
        latency=latency,
        kl=span(0.7),
        top1=None if top1 is None else span(top1),
        lost=None if top1 is None else span(80 - top1),
        draws=2,
    )


CURVE = Curve(
    structure="attention",
    score="cosine",
    repair="none",
    points=(point("90% macs", 0.875, 0.81, 76.0), point("70% macs", 0.6125, 0.55, 41.5)),
)
MODEL = ModelRecord(
    name="tiny",
    source="timm:tiny",
    dense={"top1": 80.0, "stderr": 2.0, "n": 400, "macs": 1.2e9, "params": 5e6},
    curves=(CURVE, replace(CURVE, score="random")),
    best=(CURVE,),
    repairs=(
        RepairRow(
            structure="attention",
            budget="90% macs",
            repair="least_squares",
            kl_before=0.9,
            kl_after=0.4,
            saved=span(0.5),
            p=0.0004,
        ),
    ),
    scores=(
        ScoreRow(
            structure="attention",
            score="cosine",
            repair="none",
            kl=0.9,
            better=span(0.2),
            p=0.2,
        ),
    ),
    oracle=(
        OracleRow(structure="attention", score="cosine", layers=12, rho=0.3, low=0.1, high=0.5),
    ),
    runtime="eager, batch 8",
)
STUDY = StudyRecord(
    title="A <b>grid</b>",
    counts={"ok": 4, "failed": 1, "unreachable": 2},
    cells=9,
    models=(MODEL,),
    setting={"seeds": "0, 1"},
    unreachable={"qk, 70% macs": 2},
    failures={"tiny/qk": "ZeroDivisionError: <script>alert(1)</script>"},
)


def text_of(html: str) -> str:
    """What a reader sees, without scripts and styles."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", without_scripts(html))).split())


def without_scripts(html: str) -> str:
    """The markup alone; the library of charts names addresses that nobody visits."""
    return re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)


def test_the_page_says_what_the_record_says() -> None:
    text = text_of(render_study(STUDY))
    assert "4 of 9 cells measured, 2 out of reach, 1 failed, 2 not run yet." in text
    assert "attention layers cosine 90% macs" in text
    # Points of top-1 lost per percent of MACs and of time saved: 4 / 12.5 and 4 / 19.
    assert "+0.32 +0.21" in text
    assert "76.0 [75.5, 76.2]" in text
    assert "0.900 0.400 0.500 [0.000, 0.750] –" in text
    assert "0.900 0.200 [-0.300, 0.450] 0.200" in text
    assert "+0.30 +0.10 … +0.50 12" in text
    assert "qk, 70% macs 2 cells" in text


@pytest.mark.parametrize(
    ("p", "low", "high", "told"),
    [
        (0.0004, 0.1, 0.9, "< 0.001 *"),
        (0.02, -0.9, -0.1, "0.020 *"),
        (0.3, -0.1, 0.4, "0.300"),
        (0.0004, -0.1, 0.4, "–"),
        (0.3, 0.1, 0.4, "–"),
    ],
)
def test_no_p_value_beside_an_interval_that_contradicts_it(
    p: float, low: float, high: float, told: str
) -> None:
    assert p_words(p, Span(mean=(low + high) / 2, low=low, high=high)) == told


def test_findings_come_first() -> None:
    other = replace(CURVE, structure="mlp", points=(point("70% macs", 0.65, None, 60.0),))
    sure = replace(MODEL.repairs[0], saved=Span(mean=0.5, low=0.2, high=0.7))
    model = replace(MODEL, best=(CURVE, other), repairs=(sure,))
    study = replace(STUDY, models=(model,))
    best, repair, score = findings(study)
    assert best.startswith("At the budget 70% macs, MLPs chosen by cosine lose least (top-1 60.0")
    assert "attention layers most (top-1 41.5" in best
    assert repair.startswith("Repair lowers the KL clearly in 1 of 1 comparisons")
    assert "cosine agrees best with the degradation of single removals" in score
    text = text_of(render_study(study))
    first = " ".join(best.replace("\u00a0", " ").split())
    assert text.index(first) < text.index("cells measured")


def test_costs_fall_from_left_to_right_in_every_chart() -> None:
    charts = [
        overview_figure(replace(MODEL, dense_ms=20.0), latency=False),
        overview_figure(replace(MODEL, dense_ms=20.0), latency=True),
        structure_figure(MODEL, "attention", "none"),
    ]
    for chart in charts:
        assert chart is not None and chart.x.low is not None and chart.x.high is not None
        assert chart.x.low > chart.x.high


def test_nothing_in_a_record_is_markup() -> None:
    html = render_study(STUDY)
    assert "A &lt;b&gt;grid&lt;/b&gt;" in html
    assert "<script>alert(1)</script>" not in html


def test_the_page_fetches_nothing() -> None:
    html = render_study(STUDY)
    assert not re.search(r"\b(src|href)\s*=", without_scripts(html))
    assert "default-src 'none'" in html


def test_charts_show_means_and_bands() -> None:
    by_macs = overview_figure(MODEL, latency=False)
    assert by_macs is not None
    front, line = by_macs.lines
    assert list(front.x) == [0.875, 0.6125] and "Pareto" in front.name
    assert list(line.x) == [0.875, 0.6125] and list(line.y) == [76.0, 41.5]
    assert line.band and (line.high, line.low) == ((76.25, 41.75), (75.5, 41.0))
    by_time = overview_figure(MODEL, latency=True)
    assert by_time is not None and list(by_time.lines[1].x) == [0.81, 0.55]
    in_ms = overview_figure(replace(MODEL, dense_ms=20.0), latency=True)
    assert in_ms is not None and list(in_ms.lines[1].x) == pytest.approx([16.2, 11.0])
    assert in_ms.x.title == "ms"
    scores = structure_figure(MODEL, "attention", "none")
    assert scores is not None
    assert {line.name for line in scores.lines} == {"cosine", "random"}
    assert structure_figure(MODEL, "attention", "mean") is None


def test_charts_of_structures_share_their_axes() -> None:
    lower = replace(CURVE, structure="mlp", points=(point("50% macs", 0.4, None, 12.0),))
    model = replace(MODEL, curves=(CURVE, lower))
    figures = [structure_figure(model, name, "none") for name in ("attention", "mlp")]
    ranges = [(fig.x.low, fig.x.high, fig.y.low, fig.y.high) for fig in figures if fig]
    assert ranges == [pytest.approx((1.0, 0.38, -2.4, 84.0))] * 2


def test_the_front_is_of_points_that_nothing_beats() -> None:
    beaten = point("75% macs", 0.75, 0.7, 60.0)
    better = point("80% macs", 0.72, 0.9, 70.0)
    curves = (CURVE, replace(CURVE, score="cka", points=(beaten, better)))
    by_macs = overview_figure(replace(MODEL, curves=curves), latency=False)
    by_time = overview_figure(replace(MODEL, curves=curves), latency=True)
    assert by_macs is not None and list(by_macs.lines[0].x) == [0.875, 0.72, 0.6125]
    assert by_time is not None and list(by_time.lines[0].x) == [0.81, 0.7, 0.55]


def test_times_are_told_in_milliseconds() -> None:
    timed = replace(MODEL, dense_ms=20.0)
    text = text_of(render_study(replace(STUDY, models=(timed,))))
    assert "Latency 20.0 ms dense, eager, batch 8" in text.replace("\u00a0", " ")
    assert "87.5 % 16.2 ms 76.0 [75.5, 76.2]" in text.replace("\u00a0", " ")


def test_without_measurements_there_is_no_chart() -> None:
    untimed = replace(CURVE, points=(point("90% macs", 0.9, None, 70.0),))
    model = replace(MODEL, best=(untimed,), oracle=())
    assert overview_figure(model, latency=True) is None and oracle_figure(()) is None
    assert "Per millisecond" not in text_of(render_study(replace(STUDY, models=(model,))))


def test_without_labels_the_divergence_is_shown() -> None:
    unlabelled = replace(CURVE, points=(point("90% macs", 0.9, 0.9, None),))
    model = replace(MODEL, dense=MODEL.dense | {"top1": None}, best=(unlabelled,), curves=())
    figure = overview_figure(model, latency=False)
    assert figure is not None and figure.y.title == "KL from dense, nats"
    assert list(figure.lines[0].y) == [0.7]
    assert "Dense top-1" not in text_of(render_study(replace(STUDY, models=(model,))))
