"""The demo, and what must hold of its result."""

import importlib
from pathlib import Path

import pytest

import secateur
from secateur.verbs.demo import demo
from tests.cli.conftest import Run


def test_the_whole_path(run: Run, tmp_path: Path) -> None:
    found = run("demo", "--out", tmp_path / "demo", "--json")
    assert found.code == 0, found.err
    told = found.json
    assert told["macs"]["pruned"] <= told["macs"]["dense"] / 2
    assert told["accuracy"]["dense"]["top1"] >= 98
    assert told["accuracy"]["pruned"]["top1"] >= 90
    assert told["reloaded"]["accuracy"] == told["accuracy"]["pruned"]
    assert told["reloaded"]["largest_difference"] <= 1e-5
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "secateur demo" in page
    assert secateur.load(tmp_path / "demo").num_classes == 10


def test_again_in_the_same_place_for_people(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "demo"
    demo(place, limit=32, test_limit=20, latency=False)
    first = (place / "model.safetensors").read_bytes()
    found = run("demo", "--out", place)
    assert found.code == 0, found.err
    assert "Loaded again: top-1" in found.out
    assert (place / "model.safetensors").read_bytes() != first, "more images, other weights"


def test_another_model_on_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("secateur.verbs.demo")
    dense = secateur.load("digits_vit")
    monkeypatch.setattr(module, "load", lambda source, device: dense)
    with pytest.raises(RuntimeError, match="is not the one saved"):
        demo(tmp_path / "demo", limit=32, test_limit=20, latency=False)
