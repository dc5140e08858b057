"""Sharing work between cells changes no number."""

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.study import bench, run_cell, shared_images
from secateur.study.bench import Bench, open_host
from secateur.study.runner import run_study
from secateur.study.spec import read_study
from secateur.study.streams import Streams
from tests.study.conftest import Write

WHOLE: dict[str, Any] = {
    "structures": ["attention", "mlp", "joint", "block"],
    "scores": ["random", "cosine", "delta_kl"],
    "seeds": [0, 1],
}


def divergences(out: Path) -> dict[str, np.ndarray]:
    with sqlite3.connect(out / "results.sqlite") as base:
        rows = base.execute("SELECT id, kl FROM cells WHERE status = 'ok'").fetchall()
    return {name: np.frombuffer(kl, dtype="<f4") for name, kl in rows}


def test_cells_have_the_same_numbers_without_sharing(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(**WHOLE)
    run_study(path, tmp_path / "shared")
    monkeypatch.setattr(Streams, "logits", lambda *_: None)
    monkeypatch.setattr(run_cell, "_expected_runs", lambda _: ())
    monkeypatch.setattr("secateur.study.store.Store.by_digest", lambda *_: None)
    run_study(path, tmp_path / "apart")
    shared, apart = divergences(tmp_path / "shared"), divergences(tmp_path / "apart")
    assert len(shared) > 40 and shared.keys() == apart.keys()
    for name, kl_N in apart.items():
        np.testing.assert_allclose(shared[name], kl_N, atol=1e-6, err_msg=name)


def test_one_pass_gives_the_moments_of_all_affine_stand_ins_of_a_draw(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = read_study(write(**WHOLE | {"repair": ["least_squares"]}))
    passes: list[int] = []
    collect = shared_images.run_moments

    def counted(model: Any, batches: Any, runs: Any) -> Any:
        passes.append(len(runs))
        return collect(model, batches, runs)

    monkeypatch.setattr(shared_images, "run_moments", counted)
    table = Bench(open_host(study, "digits"), 0)
    for cell in run_cell.cells_of(study):
        if cell.seed == 0:
            run_cell.run_cell(table, cell, lambda _: None)
    assert len(passes) == 1 and passes[0] > 5


def test_equal_weights_are_evaluated_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(structures=["hidden"], scores=["magnitude"], repair=["none"], seeds=[0, 1, 2])
    evaluated: list[object] = []
    evaluate = bench.StudyHost.evaluate

    def counted(self: bench.StudyHost, model: Any) -> Any:
        evaluated.append(model)
        return evaluate(self, model)

    monkeypatch.setattr(bench.StudyHost, "evaluate", counted)
    run = run_study(path, tmp_path / "out")
    assert run.cells == {"ok": 6} and len(evaluated) == 2
