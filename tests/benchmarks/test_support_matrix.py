"""The page of the support matrix names every family and architecture and counts its rows."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from secateur.models.family import families

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> str:
    """The page, with the scripts made importable as they import each other."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    from _support_page import PAGE

    return PAGE.read_text(encoding="utf-8")


AGAIN = "run: python benchmarks/support_matrix.py"


def test_the_page_names_every_family_and_architecture(text: str) -> None:
    from _support_architectures import ARCHITECTURES

    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert rows and sorted(rows) == sorted(ARCHITECTURES), AGAIN
    titles = {family.title for _, family in families.items()}
    assert titles - set(re.findall(r"^\| \*\*(.+?)\*\*", text, re.MULTILINE)) == set(), AGAIN


def test_the_summary_counts_the_rows_and_every_reason_is_told(text: str) -> None:
    from _support_page import MARKS, summary_of

    counted: dict[str, list[Counter[str]]] = defaultdict(list)
    numbers, family = set(), ""
    for line in text.partition("## Summary")[2].partition("## Notes")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers |= {int(n) for n in re.findall(r"[–✗] (\d+)", line)}
        if line.startswith("| **"):
            family = cells[0].strip("*")
        elif line.startswith("| `") and len(cells) > 2:
            counted[family].append(Counter({f"{i} {c[0]}": 1 for i, c in enumerate(cells[8:])}))
    notes = {int(n) for n in re.findall(r"^(\d+)\. ", text.partition("## Notes")[2], re.MULTILINE)}
    assert numbers == notes
    for line in summary_of(text).splitlines()[2:-2]:
        title, tried, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        own = sum(counted.pop(title), Counter())
        expected = [{m: own[f"{i} {m}"] for m in MARKS.values()} for i in range(len(cells))]
        assert [{m: _number(cell, m) for m in MARKS.values()} for cell in cells] == expected
        assert int(tried) == sum(expected[0].values())
    assert not counted


def _number(cell: str, mark: str) -> int:
    found = re.search(rf"(\d+) {mark}", cell)
    return int(found[1]) if found else 0
