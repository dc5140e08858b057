"""Every command of the tutorial runs, in its order, and its accuracies are those of the results."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.cli import app

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line
]


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "secateur"
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, f"{command}: {found.stderr}"
    assert (tmp_path / "healed.onnx").stat().st_size > 0
    assert (tmp_path / "redundancy" / "analysis.html").is_file()


def test_the_accuracies_are_those_of_the_results() -> None:
    page = (DOCS / "results" / "training_free.md").read_text(encoding="utf-8")
    table = page.partition("| method | 80% macs | 70% macs | 60% macs |")[2]
    rows = re.findall(r"^\| .*? \| `(\w+)` \| (.*?) \| (.*?) \|$", TEXT, re.M)
    assert len(rows) == 4
    for preset, at_80, at_60 in rows:
        cells = re.search(rf"^\| {preset}\b.*?$", table, re.M)
        assert cells is not None
        measured = [cell.strip() for cell in cells[0].split("|")]
        assert (at_80, at_60) == (measured[2], measured[4]), preset
