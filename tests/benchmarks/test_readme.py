"""The README says what the registries and the example say, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts be imported as they import each other."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")


@pytest.mark.usefixtures("benchmarks")
def test_tables_are_those_of_the_registries() -> None:
    import readme_tables

    text = readme_tables.README.read_text(encoding="utf-8")
    old = list(readme_tables.outdated(text))
    assert old == [], "run: python benchmarks/readme_tables.py"


@pytest.mark.usefixtures("benchmarks")
def test_a_table_that_is_not_up_to_date_is_noticed() -> None:
    import readme_tables

    text = readme_tables.README.read_text(encoding="utf-8")
    changed = text.replace("| `timm:deit3_base_patch16_224` | ✓ |", "| `other` | ✓ |")
    assert changed != text
    assert list(readme_tables.outdated(changed)) == ["families"]
    with pytest.raises(readme_tables.UserError, match="<!-- families -->"):
        list(readme_tables.outdated(text.replace("<!-- families -->", "")))


@pytest.mark.usefixtures("benchmarks")
def test_the_example_runs_and_prints_what_is_shown() -> None:
    import readme_example

    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    source = readme_example.code(text)
    assert len([line for line in source.splitlines() if line.strip()]) == 8
    shown = re.search(r"<!-- output -->\s*```text\n(.*?)```", text, re.DOTALL)
    assert shown is not None
    number = re.compile(r"\d[\d,.]*")
    printed = readme_example.output(source)
    assert number.sub("", printed) == number.sub("", shown[1])
    # Sizes are exact in the dense model; other machines may round a close choice another way.
    assert printed.splitlines()[0] == shown[1].splitlines()[0]
    for here, there in zip(number.findall(printed), number.findall(shown[1]), strict=True):
        assert float(here.replace(",", "")) == pytest.approx(float(there.replace(",", "")), rel=0.1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    local = [target for target in targets if not target.startswith(("http:", "https:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.usefixtures("benchmarks")
def test_a_page_without_the_number_is_told() -> None:
    import _readme_measured as measured
    import readme_tables

    assert measured.rows("foundation", "## Latency", batch="32")["dense"]["time, %"] == "100.0"
    assert measured.rows("foundation", "## Latency", batch="3") == {}
    with pytest.raises(readme_tables.UserError, match="no table under '## Nowhere'"):
        measured.rows("foundation", "## Nowhere")
    with pytest.raises(readme_tables.UserError, match="holds nothing like"):
        measured.found("foundation", "no such words")
