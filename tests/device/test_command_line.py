"""`--device`: verbs work there, and a device that is not there is refused before any work."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from secateur.cli import app

GONE = "error: device 'cuda:77' is not available here; choose from what is: cpu"
DIGITS = ("--data", "digits/train", "--limit", "16")
QUICK = ("--steps", "1", "--batch-size", "8")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: object) -> dict[str, object]:
    found = call(*words, "--json")
    assert found.exit_code == 0, found.output
    told: dict[str, object] = json.loads(found.stdout)
    return told


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "small"
    budget = ("--budget", "80% macs", "--preset", "magnitude", "--no-latency")
    assert call("prune", "digits_vit", *DIGITS, *budget, "--out", out).exit_code == 0
    return out


def test_verbs(small: Path, device: torch.device, tmp_path: Path) -> None:
    where = ("--device", device)
    budget = ("--budget", "80% macs")
    answer("prune", "digits_vit", *DIGITS, *budget, "--preset", "energy", "--out", tmp_path / "p",
           *where)  # fmt: skip
    answer("learn", "digits_vit", *DIGITS, *budget, *QUICK, "--criterion", "magnitude", "--out",
           tmp_path / "l", *where)  # fmt: skip
    answer("heal", small, *DIGITS, *QUICK, "--out", tmp_path / "h", *where)
    answer("train", "digits_vit", *DIGITS, *QUICK, "--out", tmp_path / "t", *where)
    for made in ("p", "l", "h", "t"):
        assert (tmp_path / made / "model.safetensors").is_file()
    plain = answer("evaluate", small, *DIGITS)
    moved = answer("evaluate", small, *DIGITS, *where)
    assert moved["top1"] == plain["top1"] and moved["kl"] == pytest.approx(plain["kl"], rel=1e-3)
    answer("analyze", small, *DIGITS, "--no-latency", *where)
    rows = answer("bench", small, "--min-runs", "2", "--max-seconds", "0", *where)["rows"]
    assert isinstance(rows, list) and {row["device"] for row in rows} == {str(device)}


def test_study(device: torch.device, tmp_path: Path) -> None:
    text = """
title: There
models: {digits: digits_vit}
calibration: {data: digits/train, limit: 16}
evaluation: {data: digits/test, limit: 32}
structures: [hidden, joint]
scores: [energy, random]
budgets: [80% macs]
repair: [none, least_squares]
latency: {seconds: 0.01}
"""
    cells: dict[str, object] = {}
    for name, line in (("plain", ""), ("moved", f"device: {device}")):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text + line, encoding="utf-8")
        told = answer("study", file, "--out", tmp_path / name)
        cells[name] = told["cells"]
        assert not told["failures"]
    assert cells["moved"] == cells["plain"]
    (tmp_path / "gone.yaml").write_text(text + "device: cuda:77", encoding="utf-8")
    found = call("study", tmp_path / "gone.yaml", "--out", tmp_path / "gone")
    assert found.exit_code == 2 and "gone.yaml" in found.output and "cuda:77" in found.output
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "digits_vit", *DIGITS, "--budget", "80% macs", "--out", "OUT"),
        ("learn", "digits_vit", *DIGITS, "--budget", "80% macs", "--out", "OUT"),
        ("heal", "SMALL", *DIGITS, "--out", "OUT"),
        ("train", "digits_vit", *DIGITS, "--out", "OUT"),
        ("analyze", "digits_vit", *DIGITS),
        ("evaluate", "digits_vit", *DIGITS),
        ("inspect", "digits_vit"),
        ("bench", "digits_vit"),
        ("demo", "--out", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_an_absent_device_is_refused(words: tuple[str, ...], small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = [{"OUT": out, "SMALL": small}.get(word, word) for word in words]
    found = call(*given, "--device", "cuda:77")
    assert found.exit_code == 2 and GONE in found.output and found.output.count("\n") == 1
    assert not out.exists() and not list(tmp_path.iterdir())
    found = call(*given, "--device", "teapot")
    assert found.exit_code == 2 and "'teapot' is no device; write for example" in found.output
    assert call(*given, "--device", "meta").exit_code == 2
