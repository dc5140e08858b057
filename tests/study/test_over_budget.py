"""Cells whose model shares weights, or whose cut model is above its budget, fail with a reason."""

import pytest
from torch import nn

from secateur.methods import cutting
from secateur.study import bench as study_bench
from secateur.study.bench import Bench, open_host
from secateur.study.cells import cells_of
from secateur.study.run_cell import run_cell
from secateur.study.spec import read_study
from secateur.study.store import FAILED, Outcome
from tests.study.conftest import Write


def first_cell(write: Write, budget: str) -> Outcome:
    path = write(structures=["hidden"], scores=["energy"], budgets=[budget], seeds=[0])
    study = read_study(path)
    return run_cell(Bench(open_host(study, "digits"), 0), cells_of(study)[0], lambda _: None)


def test_shared_weights(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    load = study_bench.load

    def load_tied(*args: object, **options: object) -> nn.Module:
        model = load(*args, **options)  # type: ignore[arg-type]
        model.blocks[1].mlp = model.blocks[0].mlp
        return model

    monkeypatch.setattr(study_bench, "load", load_tied)
    outcome = first_cell(write, "80% macs")
    assert outcome.status == FAILED
    assert (outcome.reason or "").startswith("blocks.0.mlp and blocks.1.mlp share weights")


@pytest.mark.parametrize("unit", ["macs", "params"])
def test_more_than_the_budget(write: Write, monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    monkeypatch.setattr(cutting, "cut_", lambda *_: None)
    outcome = first_cell(write, f"80% {unit}")
    assert outcome.status == FAILED
    assert "more than the" in (outcome.reason or "")
    assert f"of budget '80% {unit}'" in (outcome.reason or "")
