"""The page of unusual inputs names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "inputs.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)` \|$")
HEADS = ("| input", "| input or event")


def test_every_row_names_a_test() -> None:
    rows = [row for row in ROWS if not row.startswith(HEADS)]
    assert len(rows) > 50
    assert [row for row in rows if NAMED.search(row) is None] == []


@pytest.mark.parametrize("file", sorted({match[1] for row in ROWS if (match := NAMED.search(row))}))
def test_the_tests_exist(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = {m[2] for row in ROWS if (m := NAMED.search(row)) and m[1] == file}
    assert named - there == set()
