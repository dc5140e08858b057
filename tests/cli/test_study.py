"""`secateur study` on the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.study.store import FAILED, Outcome
from tests.cli.conftest import Run

GRID: dict[str, Any] = {
    "title": "Few cells",
    "models": {"digits": "digits_vit"},
    "calibration": {"data": "digits/train", "limit": 16},
    "evaluation": {"data": "digits/test", "limit": 20},
    "structures": ["hidden"],
    "scores": ["magnitude"],
    "budgets": ["90% macs", "80% macs"],
    "latency": None,
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(GRID), encoding="utf-8")
    return path


def test_json_says_what_ran_and_where_it_is(run: Run, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run("study", study, "--out", out, "--json")
    assert found.code == 0, found.err
    assert found.json["cells"] == {"ok": 2} and found.json["ran"] == 2
    assert Path(found.json["page"]).exists() and Path(found.json["store"]).exists()
    again = run("study", study, "--out", out)
    assert again.code == 0 and "2 ok (0 run now)" in again.out
    page = out / "report.html"
    page.unlink()
    assert run("study", study, "--out", out, "--page").code == 0 and page.exists()


def test_failed_cells_are_told_and_give_exit_code_1(
    run: Run, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Outcome:
        return Outcome(status=FAILED, reason="it broke")

    monkeypatch.setattr("secateur.study.worker.run_cell", fail)
    found = run("study", study, "--out", tmp_path / "out", "--json")
    assert found.code == 1 and found.json["cells"] == {"failed": 2}
    told = run("study", study, "--out", tmp_path / "out")
    assert told.code == 1 and "it broke" in told.out


def test_wrong_studies_end_with_one_sentence(run: Run, study: Path, tmp_path: Path) -> None:
    study.write_text(yaml.safe_dump(GRID | {"scores": ["magnitud"]}), encoding="utf-8")
    found = run("study", study, "--out", tmp_path / "out")
    assert found.code == 2 and "did you mean 'magnitude'" in found.err
    assert not (tmp_path / "out").exists()
    nothing = run("study", study, "--out", tmp_path / "none", "--page")
    assert nothing.code == 2
