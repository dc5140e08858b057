"""`secateur heal` and `secateur train` as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import secateur
from secateur.errors import UserError
from secateur.training import machine
from secateur.training.checkpoint import FILE
from tests.cli.conftest import Run
from tests.training.learners import same

QUICK = ["--steps", "6", "--batch-size", "8", "--limit", "60"]


def config(folder: Path, **values: object) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump({"trackers": [], **values}))
    return folder / "run.yaml"


def test_heal_answers_in_json_and_cleans_up(run: Run, pruned_once: Path, tmp_path: Path) -> None:
    out = tmp_path / "healed"
    given = ["heal", pruned_once, "--data", "digits/train", "--out", out, *QUICK, "--json"]
    ended = run(*given, "--eval-data", "digits/test", "--config", config(tmp_path, log_every=2))
    assert ended.code == 0, ended.err
    found = ended.json
    assert found["out"] == str(out) and found["preset"] == "energy"
    assert found["budget"] == "25% hidden"
    assert found["params"]["pruned"] < found["params"]["dense"]
    assert found["macs"]["pruned"] < found["macs"]["dense"] and found["seconds"] > 0
    assert found["accuracy"]["pruned"]["n"] == 450
    assert found["training"]["steps"] == 6 and found["training"]["settings"]["log_every"] == 2
    assert "step 6, held out kl" in ended.err and "images/s" in ended.err
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "model.safetensors",
        "report.html",
        "spec.json",
        "training.json",
    ]
    assert not (tmp_path / "healed.training" / FILE).exists()
    again = run("evaluate", out, "--data", "digits/test", "--json")
    assert again.json["top1"] == found["accuracy"]["pruned"]["top1"]


def test_train_shows_people_what_it_did(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "dense"
    given = ["train", "digits_vit", "--data", "digits/train", "--out", out, *QUICK]
    ended = run(*given, "--eval-data", "digits/test", "--config", config(tmp_path))
    assert ended.code == 0, ended.err
    for word in ("6 steps", "held-out error", "top-1, now", "Saved to"):
        assert word in ended.out
    assert run("inspect", out, "--json").code == 0
    assert "trained by secateur" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "'steps': input should be greater than or equal to 1"),
        (["--steps", "2", "--epochs", "1"], "steps and epochs are given"),
        (["--time", "soon"], "neither a time nor a number of steps"),
        (["--precision", "fp8"], "'precision'"),
        (["--config", "none.yaml"], "cannot be read"),
        (["--reference-checkpoint", "x.safetensors"], "needs the name of its model"),
        (["--reference", "timm:vit_tinny"], "unknown timm model"),
        (["--data", "nowhere"], "no images at 'nowhere'"),
        (["--eval-data", "nowhere"], "no images at 'nowhere'"),
        (["--limit", "2"], "2 images are too few to hold out"),
    ],
)
def test_wrong_input_ends_with_a_sentence(
    arguments: list[str], words: str, run: Run, pruned_once: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = run("heal", pruned_once, "--data", "digits/train", "--out", out, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err and ended.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_other_settings_is_refused_until_restarted(
    run: Run, pruned_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = ["heal", pruned_once, "--data", "digits/train", "--out", out, *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr("secateur.verbs.training_result.save", full)
        assert run(*given).code == 2
    assert (tmp_path / "out.training" / FILE).exists() and not out.exists()
    ended = run(*given, "--learning-rate", "0.5")
    assert ended.code == 2
    assert "optimizer.learning_rate: 0.0001 → 0.5" in ended.err and "--restart" in ended.err
    assert not out.exists()
    # What was trained is not lost, and need not be trained again.
    ended = run(*given, "--json")
    assert ended.code == 0 and ended.json["training"]["resumed_at"] == 6
    changed = [*given, "--learning-rate", "0.5", "--restart"]
    ended = run(*changed)
    assert ended.code == 2 and "healed (6 steps), saved on" in ended.err
    assert run(*changed, "--overwrite").code == 0


def full(*_: object, **__: object) -> None:
    raise UserError("cannot save: the disk is full.")


def test_a_foreign_directory_is_refused_at_once(
    run: Run, pruned_once: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    ended = run("heal", pruned_once, "--data", "digits", "--out", tmp_path / "mine")
    assert ended.code == 2 and "was not written by secateur" in ended.err


def command(model: Path, out: Path, settings: Path) -> list[str]:
    words = [sys.executable, "-m", "secateur", "heal", model, "--data", "digits/train", "--json"]
    words += ["--out", out, "--config", settings, "--limit", "60", "--threads", "1"]
    return [str(word) for word in words]


@pytest.mark.slow
def test_a_killed_program_goes_on_to_the_same_model(
    run: Run, pruned_once: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, steps=40, batch_size=8, checkpoint_seconds=0, checks=0)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(pruned_once, killed, settings),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    checkpoint = tmp_path / "killed.training" / FILE
    limit = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not killed.exists()
    ended = run(*command(pruned_once, killed, settings)[3:])
    assert ended.code == 0, ended.err
    assert 0 < ended.json["training"]["resumed_at"] <= 40
    straight = run(*command(pruned_once, whole, settings)[3:])
    assert straight.json["training"]["resumed_at"] is None
    assert same(secateur.load(killed), secateur.load(whole))


@pytest.mark.slow
def test_two_processes_on_the_command_line(pruned_once: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = config(tmp_path, steps=3, batch_size=8)
    words = command(pruned_once, out, settings)[1:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*launch, *words],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["training"]["processes"] == 2
    assert secateur.load(out) is not None


def test_slow_bf16_is_noted_before_training(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    given = ["train", "digits_vit", "--data", "digits/train", "--out", tmp_path / "dense", *QUICK]
    ended = run(*given, "--precision", "bf16", "--config", config(tmp_path), "--json")
    assert ended.code == 0 and ended.json["training"]["steps"] == 6
    assert "note: this processor has no instructions for bf16" in ended.err


def test_kept_answers_need_views(run: Run, pruned_once: Path, tmp_path: Path) -> None:
    distil = {"token_weight": 0.0, "layerwise": 0.0, "answers": str(tmp_path / "answers")}
    given = ["heal", pruned_once, "--data", "digits/train", "--out", tmp_path / "out", *QUICK]
    ended = run(*given, "--config", config(tmp_path, distil=distil))
    assert ended.code == 2 and "set augment.views" in ended.err
    ended = run(*given, "--config", config(tmp_path, distil=distil, augment={"views": 2}))
    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "answers").iterdir())) == 1
