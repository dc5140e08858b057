"""Results are replaced only when asked, which is found before anything is opened, and told."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import secateur
from secateur.training import checkpoint
from secateur.verbs.demo import demo
from tests.cli.conftest import Run
from tests.cli.test_study import GRID

NOTES = "ten years of work"
DATA = ("--data", "digits/train")


@pytest.fixture
def there(pruned_once: Path, tmp_path: Path) -> Path:
    """A saved model with a file of its owner beside it."""
    out = tmp_path / "small"
    shutil.copytree(pruned_once, out)
    (out / "notes.txt").write_text(NOTES)
    (out / "small.onnx").write_text("graph")
    return out


VERBS = {
    "prune": ["prune", "nothing", *DATA, "--budget", "50% macs"],
    "heal": ["heal", "nothing", *DATA],
    "train": ["train", "nothing", *DATA],
    "learn": ["learn", "nothing", *DATA, "--budget", "50% macs"],
    "demo": ["demo"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("no_pass")
def test_a_saved_model_is_not_replaced_unasked(verb: str, run: Run, there: Path) -> None:
    before = {path.name: path.read_bytes() for path in there.iterdir()}
    ended = run(*VERBS[verb], "--out", there)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {there} holds a model pruned to 25% hidden, saved on ")
    assert "another output directory" in ended.err and "--overwrite" in ended.err
    assert ended.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    if verb != "demo":
        ended = run(*VERBS[verb], "--out", there, "--overwrite")
        assert ended.code == 2 and "'nothing'" in ended.err, "past the directory, to the model"
        assert {path.name: path.read_bytes() for path in there.iterdir()} == before


QUICK = ("--steps", 2, "--batch-size", 8, "--limit", 40)


@pytest.mark.parametrize(
    "verb",
    [
        ["prune", "digits_vit", *DATA, "--budget", "50% hidden", "--preset", "magnitude"],
        ["heal", "INPUT", *DATA, *QUICK],
        ["train", "digits_vit", *DATA, *QUICK],
        ["learn", "digits_vit", *DATA, "--budget", "60% params", *QUICK, "--sharing", "per_head"],
        ["demo"],
    ],
    ids=lambda verb: verb[0],
)
def test_replaced_when_asked_and_told(
    verb: list[object], run: Run, there: Path, pruned_once: Path, tmp_path: Path
) -> None:
    words = [pruned_once if word == "INPUT" else word for word in verb]
    if verb[0] == "prune":
        words += ["--no-latency", "--limit", 8]
    ended = run(*words, "--out", there, "--overwrite", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["replaced"].startswith("a model pruned to 25% hidden, saved on ")
    assert (there / "notes.txt").read_text() == NOTES
    assert (there / "small.onnx").read_text() == "graph"
    names = {path.name for path in there.iterdir()}
    assert not any(name.startswith(".") for name in names)
    assert "report.html" in names
    page = (there / "report.html").read_text(encoding="utf-8")
    assert ("training report" in page.lower()) is (verb[0] in ("heal", "train")), "no stale page"
    secateur.load(there)
    assert not list(tmp_path.rglob(checkpoint.FILE))
    if verb[0] == "prune":
        ended = run(*words, "--out", there, "--overwrite")
        assert "Replaced a model pruned to 50% hidden, saved on " in " ".join(ended.out.split())


def test_a_demo_replaces_only_what_demo_made(run: Run, there: Path) -> None:
    quick = {"limit": 32, "test_limit": 20, "latency": False}
    assert demo(there, overwrite=True, **quick).replaced
    (there / "more.txt").write_text("more")
    replaced = demo(there, **quick).replaced
    assert replaced is not None and replaced.startswith("a model pruned to 50% macs, saved on ")
    assert (there / "more.txt").exists() and (there / "notes.txt").exists()
    healed = ["heal", there, *DATA, *QUICK, "--out", there]
    assert run(*healed).code == 2
    assert run(*healed, "--overwrite").code == 0
    ended = run("demo", "--out", there)
    assert ended.code == 2 and "healed (2 steps), saved on" in ended.err


def test_analyses_and_exports(run: Run, tmp_path: Path) -> None:
    out, file = tmp_path / "page", tmp_path / "small.onnx"
    given = ["digits_vit", "--data", "digits", "--limit", 8, "--no-latency", "--out", out]
    assert run("analyze", *given).code == 0
    (out / "notes.txt").write_text(NOTES)
    ended = run("analyze", "nothing", *given[1:])
    assert ended.code == 2 and "holds an analysis, saved on " in ended.err
    ended = run("analyze", *given, "--overwrite", "--json")
    assert ended.json["replaced"].startswith("an analysis, saved on ")
    assert {p.name for p in out.iterdir()} == {"analysis.html", "analysis.json", "notes.txt"}
    file.write_text("mine")
    ended = run("export", "nothing", "--to", "onnx", "--out", file)
    assert ended.code == 2 and f"there is a file {file}, saved on " in ended.err
    assert file.read_text() == "mine"
    ended = run("export", "digits_vit", "--to", "onnx", "--out", file, "--overwrite", "--json")
    assert ended.code == 0 and ended.json["replaced"].startswith(f"{file}, saved on ")


def test_a_study_leaves_the_page_of_another_run(run: Run, there: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(GRID))
    before = (there / "report.html").read_bytes()
    ended = run("study", study, "--out", there)
    assert ended.code == 2 and "holds a report.html that is of no study" in ended.err
    assert not (there / "results.sqlite").exists()
    assert (there / "report.html").read_bytes() == before


def test_what_a_killed_run_left_is_restored_with_a_note(run: Run, there: Path) -> None:
    os.rename(there, there.with_name(".small.old-0123abcd"))
    ended = run("inspect", there)
    assert ended.code == 0
    assert f"note: restored {there} from .small.old-0123abcd" in ended.err
    assert (there / "notes.txt").read_text() == NOTES


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_stopped_run_keeps_a_checkpoint_and_says_how_to_go_on(
    number: int, code: int, word: str, pruned_once: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(yaml.safe_dump({"trackers": [], "log_every": 1, "checks": 1}))
    words = ["heal", pruned_once, *DATA, "--out", tmp_path / "healed", "--config", settings]
    words += ["--steps", 100_000, "--batch-size", 8, "--limit", 60, "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "secateur", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    line = ""
    while not line.startswith("step "):
        line = process.stderr.readline()
        assert line, "ended before its first step"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    folder = tmp_path / "healed.training"
    assert f"error: {word}; the last checkpoint is kept in {folder}; give the same command" in err
    state = checkpoint.read(folder)
    assert state is not None and state["step"] >= 1
    assert not (tmp_path / "healed").exists()
