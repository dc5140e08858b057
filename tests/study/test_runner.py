"""Studies end to end: resumed after a kill, failures recorded, stores of other studies refused."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from secateur.criteria.registry import criteria
from secateur.errors import UserError
from secateur.study.runner import run_study
from secateur.study.worker import Worker
from secateur.verbs.evaluate import evaluate
from secateur.verbs.load import load
from secateur.verbs.prune import prune
from tests.study.conftest import Write


def rows(out: Path, columns: str = "id, status, result, correct, kl") -> list[tuple[Any, ...]]:
    with sqlite3.connect(out / "results.sqlite") as base:
        found = base.execute(f"SELECT {columns} FROM cells ORDER BY id").fetchall()
    return [tuple(_timeless(value) for value in row) for row in found]


def _timeless(value: Any) -> Any:
    """Results without the seconds they took."""
    return re.sub(r'"seconds": [^,}]+', "", value) if isinstance(value, str) else value


def test_a_cell_is_what_prune_and_evaluate_give(write: Write, tmp_path: Path) -> None:
    grid = {"budgets": ["80% macs"], "repair": ["least_squares"], "seeds": [3]}
    run_study(
        write(structures=["hidden", "block"], scores=["energy", "cosine"], **grid),
        tmp_path / "out",
    )
    found = dict(rows(tmp_path / "out", "structure, json_extract(result, '$.kl')"))
    model = load("digits_vit")
    same: dict[str, dict[str, Any]] = {
        "hidden": {"preset": "energy", "groups": ["hidden"]},
        "block": {"preset": "shortgpt", "repair": "least_squares", "replacement": "affine"},
    }
    for structure, options in same.items():
        smaller = prune(
            model, "digits/train", "80% macs", seed=3, limit=24, **{"exact_tail": False} | options
        )
        scored = evaluate(smaller.model, "digits/test", reference=model, limit=40)
        assert found[structure] == pytest.approx(scored.kl, rel=1e-4), structure


def test_whole_layers_are_dropped_of_the_kind_named(write: Write, tmp_path: Path) -> None:
    run_study(
        write(structures=["attention", "mlp", "joint", "block"], scores=["delta_kl", "greedy"]),
        tmp_path / "out",
    )
    for structure, score, status, shapes in rows(
        tmp_path / "out", "structure, score, status, json_extract(result, '$.shapes')"
    ):
        if status != "ok":
            continue
        gone = re.findall(r'"(blocks\.\d\.(?:attn|mlp))":null', shapes)
        kinds = {name.rpartition(".")[2] for name in gone}
        assert gone, (structure, score)
        if structure == "attention":
            assert kinds == {"attn"}
        elif structure == "mlp":
            assert kinds == {"mlp"}
        elif structure == "block":
            assert len(gone) == 2 * len({name.rpartition(".")[0] for name in gone})


def test_a_finished_study_runs_nothing_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(structures=["hidden"], scores=["magnitude"], seeds=[0])
    first = run_study(path, tmp_path / "out")
    assert first.ran == 4 and first.cells == {"ok": 4}
    before = rows(tmp_path / "out")

    def never(self: Worker, cell: object) -> None:
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(Worker, "run", never)
    again = run_study(path, tmp_path / "out")
    assert again.ran == 0 and rows(tmp_path / "out") == before
    monkeypatch.undo()
    wider = run_study(write(structures=["hidden"], scores=["magnitude"]), tmp_path / "out")
    assert wider.ran == 4 and set(before) <= set(rows(tmp_path / "out"))


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(write: Write, tmp_path: Path) -> None:
    path = write()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_study(path, whole)
    command = [sys.executable, "-m", "secateur", "study", str(path), "--out", str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if (killed / "results.sqlite").exists() and _count(killed) >= 3:
                break
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = _count(killed)
    assert 3 <= done < 48 and not (killed / "report.html").exists()
    finished = rows(killed)
    run = run_study(path, killed)
    assert run.ran == 48 - done
    assert rows(killed) == rows(whole) and set(finished) <= set(rows(killed))
    assert (killed / "report.html").exists()


def _count(out: Path) -> int:
    try:
        with sqlite3.connect(f"file:{out / 'results.sqlite'}?mode=ro", uri=True) as base:
            return int(base.execute("SELECT count(*) FROM cells").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = criteria.get("magnitude")

    def fail(question: object) -> Any:
        raise ZeroDivisionError("it broke")

    path = write(structures=["hidden"], seeds=[0])
    with monkeypatch.context() as patched:
        patched.setitem(
            criteria._items, "magnitude", type(broken)(**{**_fields(broken), "answer": fail})
        )
        run = run_study(path, tmp_path / "out")
    assert run.cells == {"ok": 8, "failed": 4}
    assert all("ZeroDivisionError: it broke" in reason for reason in run.failures.values())
    assert "it broke" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    mended = run_study(path, tmp_path / "out")
    assert mended.ran == 4 and mended.cells == {"ok": 12} and not mended.failures


def _fields(criterion: Any) -> dict[str, Any]:
    return {name: getattr(criterion, name) for name in ("name", "title", "source", "needs")}


def test_budgets_out_of_reach_are_outcomes(write: Write, tmp_path: Path) -> None:
    path = write(structures=["qk"], scores=["magnitude"], budgets=["95% macs", "20% macs"])
    run = run_study(path, tmp_path / "out")
    assert run.cells == {"ok": 4, "unreachable": 4} and not run.failures
    assert run_study(path, tmp_path / "out").ran == 0


def test_stores_of_other_versions_and_settings_are_refused(write: Write, tmp_path: Path) -> None:
    path = write(structures=["hidden"], scores=["magnitude"], seeds=[0])
    out = tmp_path / "out"
    run_study(path, out)
    other = write("other.yaml", structures=["hidden"], evaluation={"data": "digits/test"})
    with pytest.raises(UserError, match="under another 'evaluation'"):
        run_study(other, out)
    moved = write("moved.yaml", models={"digits": {"source": "digits_vit", "mean": 0.3}})
    with pytest.raises(UserError, match=r"under another 'models\.digits'"):
        run_study(moved, out)
    with sqlite3.connect(out / "results.sqlite") as base:
        base.execute("UPDATE about SET value = '999' WHERE key = 'version'")
    with pytest.raises(UserError, match="store version 999, this one reads"):
        run_study(path, out)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.sqlite").write_text("no database at all, but long enough" * 99)
    with pytest.raises(UserError, match="is no store of a study"):
        run_study(path, tmp_path / "bad")


def test_unknown_models_and_images_are_named_before_any_work(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"study\.yaml, line 3: .*digits_vitt"):
        run_study(write(models={"a": "digits_vitt"}), out)
    with pytest.raises(UserError, match=r"study\.yaml, line 3: "):
        run_study(write(evaluation={"data": str(tmp_path / "absent")}), out)
    assert not out.exists()


def test_latency_is_measured_once_per_shape(write: Write, tmp_path: Path) -> None:
    path = write(
        structures=["hidden", "attention"],
        scores=["magnitude", "random"],
        latency={"batch": 1, "seconds": 0.01, "clock": "processor"},
        seeds=[0],
    )
    out = tmp_path / "out"
    run_study(path, out)
    with sqlite3.connect(out / "results.sqlite") as base:
        shapes = base.execute(
            "SELECT count(DISTINCT json_extract(result, '$.signature')) FROM cells "
            "WHERE status = 'ok'"
        ).fetchone()[0]
        measured = base.execute(
            "SELECT json_extract(result, '$.ratio'), json_extract(result, '$.pruned_ms') "
            "FROM latency"
        ).fetchall()
    assert shapes == len(measured) > 0
    assert "processor time" in (out / "report.html").read_text(encoding="utf-8")
    assert all(ratio > 0 and ms > 0 for ratio, ms in measured)


@pytest.mark.slow
def test_two_ray_workers_give_the_same_cells(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'secateur[study]')")
    path = write()
    run_study(path, tmp_path / "here")
    run_study(path, tmp_path / "ray", ray="local", jobs=2)
    assert rows(tmp_path / "here") == rows(tmp_path / "ray")


@pytest.mark.slow
def test_no_cluster_is_said_so(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'secateur[study]')")
    with pytest.raises(UserError, match=r"no Ray cluster at '127\.0\.0\.1:9'"):
        run_study(write(), tmp_path / "out", ray="127.0.0.1:9")


def test_presets_are_rows_that_prune_as_prune_does(write: Write, tmp_path: Path) -> None:
    """Also those that measure, search, rotate or go in two stages."""
    presets = ["spectral", "snp+block", "sleb", "slicegpt"]
    study = write(structures=["hidden"], scores=["energy"], presets=presets, budgets=["80% macs"])
    run_study(study, tmp_path / "out")
    columns = "score, seed, status, reason, json_extract(result, '$.kl')"
    found = {row[:2]: row[2:] for row in rows(tmp_path / "out", columns)}
    model = load("digits_vit")
    for preset in presets:
        for seed in (0, 1):
            status, reason, kl = found[preset, seed]
            assert status == "ok", reason
            smaller = prune(model, "digits/train", "80% macs", seed=seed, limit=24, preset=preset)
            scored = evaluate(smaller.model, "digits/test", reference=model, limit=40)
            assert kl == pytest.approx(scored.kl, rel=1e-4, abs=1e-10), preset
    assert "own" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_study_of_presets_alone_needs_no_scores(write: Write, tmp_path: Path) -> None:
    path = write(structures=["hidden"], scores=["energy"], presets=["energy"])
    text = path.read_text(encoding="utf-8")
    for name in ("structures:\n- hidden\n", "scores:\n- energy\n"):
        assert name in text
        text = text.replace(name, "")
    path.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    run_study(path, out)
    assert {row[0] for row in rows(out, "structure")} == {"own"}
