import pytest

from secateur.report.words import (
    budget_words,
    change,
    count,
    duration,
    listed,
    percent,
    points,
    significant,
)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1_000, "1.00 k"), (94_126_080, "94.1 M"), (999_700, "1.00 M"),
     (1_258_000_000, "1.26 G")],
)  # fmt: skip
def test_counts_have_three_digits(number: float, text: str) -> None:
    assert plain(count(number)) == text


def test_a_change_names_a_common_unit_once() -> None:
    assert plain(change(94_126_080, 51_729_984)) == "94.1 → 51.7 M"
    assert plain(change(2_620_000, 109_000)) == "2.62 → 0.109 M"
    assert plain(change(5_000, 5_000)) == "5.00 k"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5496, "55.0 %"), (1.0, "100.0 %"), (0.99999, "99.9 %"), (0.00001, "0.1 %"), (0, "0.0 %")],
)
def test_nothing_and_everything_are_kept_for_themselves(share: float, text: str) -> None:
    assert plain(percent(share)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.001, "< 0.01 s"), (0.04, "0.04 s"), (2.44, "2.4 s"), (9.96, "10 s"), (59.7, "1 min 0 s"),
     (185, "3 min 5 s"), (7_800, "2 h 10 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert plain(duration(seconds)) == text


def test_points_have_a_sign() -> None:
    assert plain(points(-6.47)) == "−6.5 points"
    assert plain(points(0.4)) == "+0.4 points"
    assert plain(points(-0.01)) == "+0.0 points"


def test_significant_digits() -> None:
    assert [significant(x) for x in (0.683, 9.99, 10.04, 99.96, 6213.0)] == [
        "0.68", "9.99", "10.0", "100", "6213",
    ]  # fmt: skip


def test_lists_read_as_sentences() -> None:
    assert [listed(list(x)) for x in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        ("55% macs", "keep at most 55 % of the MACs"),
        ("2.0 GMACs", "keep at most 2.00 GMACs"),
        ("3M params", "keep at most 3.00 M parameters"),
        ("6.5 ms", "keep at most 6.5 ms"),
        ("2x faster", "keep at most 50 % of the latency"),
        ("50% qk, 70% hidden",
         "keep 50 % of the query/key dims and 70 % of the MLP neurons in every layer"),
        ("drop 25% blocks", "drop 25 % of the blocks"),
        ("drop 3 attention, drop 1 mlp, 60% hidden",
         "keep 60 % of the MLP neurons in every layer and drop 3 attention layers and 1 MLP"),
        ("as small as can be", "meet the budget “as small as can be”"),
    ],
)  # fmt: skip
def test_budgets_in_words(budget: str, text: str) -> None:
    assert plain(budget_words(budget)) == text
