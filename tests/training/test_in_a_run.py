"""A polish as part of a pruning run: asked for, recorded, off unless wanted."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import secateur
from secateur.cli import app
from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.report import render
from tests.hosts import build, images_for


def test_off_by_default() -> None:
    model = build("vit")
    result = secateur.prune(model, images_for(model, 10), "50% hidden", preset="energy")
    assert result.polish is None and "polish" not in result.seconds
    assert result.record()["polish"] is None
    assert not any("olish" in note for note in result.notes)
    assert "nothing was trained" in render(result.record())


def test_recorded_when_asked_for() -> None:
    model = build("vit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    told = []
    result = secateur.prune(
        model,
        images_for(model, 60),
        "50% hidden",
        preset="magnitude",
        batch_size=8,
        polish="5 steps",
        progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    assert ("polish", 5, 5) in told
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    report = result.polish
    assert report is not None and report.steps == 5 and report.kl_after < report.kl_before
    assert 0 < report.seconds <= result.seconds["polish"]
    assert json.loads(json.dumps(result.record()["polish"])) == report.to_json()
    assert any("5 steps" in note for note in result.notes)
    assert "5\u00a0steps without labels" in render(result.record())


@pytest.mark.parametrize(
    ("polish", "count", "words"),
    [("5 epochs", 10, "neither a time"), ("5 steps", 4, "too few to polish")],
)
def test_refused_before_any_work(
    polish: str, count: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise AssertionError("the pass began")

    monkeypatch.setattr(Batches, "__iter__", begin)
    model = build("vit")
    with pytest.raises(UserError, match=words):
        secateur.prune(
            model, images_for(model, count), "50% hidden", preset="energy", polish=polish
        )


def test_on_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "small"
    arguments = ["prune", "digits_vit", "--data", "digits/train", "--budget", "50% hidden"]
    arguments += ["--preset", "energy", "--limit", "40", "--batch-size", "8", "--out", str(out)]
    arguments += ["--no-latency", "--json", "--polish"]
    found = CliRunner().invoke(app, [*arguments, "3 steps"])
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["polish"]["steps"] == 3
    spec = json.loads((out / "spec.json").read_text())
    assert spec["provenance"]["polish"]["steps"] == 3
    assert secateur.load(out)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)

    wrong = CliRunner().invoke(app, [*arguments, "soon", "--overwrite"])
    assert wrong.exit_code == 2
    assert "polish 'soon'" in wrong.stderr
