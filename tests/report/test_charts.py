"""Charts put marks where their values are."""

import re

import pytest

from secateur.report.drawing.axes import place
from secateur.report.drawing.chart import Axis, Chart, Line, Rule
from secateur.report.drawing.chart_svg import chart_svg, file_paint


def test_places_on_linear_and_log_axes() -> None:
    linear = place(Axis(low=0, high=10), [], 0, 100)
    assert [linear(value) for value in (0, 5, 10, 99)] == [0, 50, 100, 100]
    turned = place(Axis(low=1.0, high=0.5), [], 0, 100)
    assert turned(0.75) == pytest.approx(50)
    log = place(Axis(scale="log", low=0.01, high=100), [], 0, 100)
    assert log(1.0) == pytest.approx(50)


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Axis(low=0, high=1, form="percent"), ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]),
        (Axis(low=1, high=0.5, form="percent"), ["50 %", "60 %", "70 %", "80 %", "90 %", "100 %"]),
        (
            Axis(low=0, high=500_000, form="count"),
            ["0", "100 k", "200 k", "300 k", "400 k", "500 k"],
        ),
        (Axis(low=-1.05, high=1.05), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (Axis(scale="log", low=1e-4, high=1), ["0.0001", "0.001", "0.01", "0.1", "1"]),
        (Axis(scale="log", low=0.3, high=6), ["0.5", "1", "2", "5"]),
        (Axis(low=0, high=0.1), ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"]),
    ],
)
def test_ticks_are_round_numbers(axis: Axis, labels: list[str]) -> None:
    assert [text for _, text in place(axis, [], 0, 100).ticks(6)] == labels


def test_ranges_leave_room_but_not_below_zero() -> None:
    assert place(Axis(), [0.0, 10.0], 0, 100).low == 0
    assert place(Axis(), [5.0, 10.0], 0, 100).low == pytest.approx(4.8)
    steps = place(Axis(low=0, form="count"), [2.0], 0, 100).ticks(10)
    assert [text for _, text in steps] == ["0", "1", "2"]
    flat = place(Axis(), [0.0, 0.0], 0, 100)
    assert flat.low == 0 and flat.high > 0


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    lines = tuple(
        Line(name=f"line {i}", x=(0.0, 1.0), y=(0.0, 1.0 + i / 1000), colour="qk") for i in range(6)
    )
    svg = chart_svg(Chart(marks=lines), 800)
    found = [float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>line \d<', svg)]
    assert len(found) == 6
    assert min(b - a for a, b in zip(sorted(found), sorted(found)[1:], strict=False)) >= 14


def test_a_file_stands_alone() -> None:
    line = Line(name="a", x=(0.0, 1.0), y=(None, 1.0), colour="vo", hover=("no", "one"))
    chart = Chart(marks=(line,), rules=(Rule(y=0.5, label="half"),))
    svg = chart_svg(chart, 700, paint=file_paint, title="A chart")
    assert svg.count("http") == 1 and "var(" not in svg and "<script" not in svg
    assert "<title>one</title>" in svg and "<title>no</title>" not in svg
    assert ">half</text>" in svg and ">A chart</text>" in svg
