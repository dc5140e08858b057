"""One process trains for an output at a time, and one that was killed after its save is done."""

import shutil
import sys
from pathlib import Path

import pytest

import secateur
from secateur.locks import FILE
from secateur.training import checkpoint
from tests.cli.conftest import Run
from tests.cli.test_overwrite import DATA, QUICK
from tests.study.test_killed import another

VERBS = {
    "heal": ["heal", "INPUT"],
    "train": ["train", "digits_vit"],
    "learn": ["learn", "digits_vit", "--budget", "60% params", "--sharing", "per_head"],
}


def words(verb: str, pruned: Path, out: Path) -> list[object]:
    given = [pruned if word == "INPUT" else word for word in VERBS[verb]]
    return [*given, *DATA, *QUICK, "--out", out]


@pytest.mark.usefixtures("no_pass")
@pytest.mark.parametrize("verb", VERBS)
def test_the_second_of_two_is_told_and_changes_nothing(
    verb: str, run: Run, pruned_once: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "small", tmp_path / "small.training"
    given = [*words(verb, pruned_once, out), "--learning-rate", 0.3]
    with another(folder) as child:
        ended = run(*given)
        assert ended.code == 2 and ended.err.count("\n") == 1
        assert f"small.training is in use: process {child} on " in ended.err
        assert [p.name for p in folder.iterdir()] == [FILE] and not out.exists()
    given[1] = "nothing"
    ended = run(*given)
    assert ended.code == 2 and "'nothing'" in ended.err, "past the lock of the dead"
    assert not list(folder.iterdir())


def test_a_folder_of_checkpoints_is_held_in_python_too(pruned_once: Path, tmp_path: Path) -> None:
    model = secateur.load(pruned_once)
    with another(tmp_path), pytest.raises(secateur.UserError, match="is in use: process"):
        secateur.heal(model, "digits/train", limit=40, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("verb", ["heal", "learn"])
def test_killed_between_its_save_and_the_end(
    verb: str, run: Run, pruned_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, folder = tmp_path / "small", tmp_path / "small.training"
    given = words(verb, pruned_once, out)
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, given)])

    def die(_: Path) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "remove", die)
        assert run(*given).code == 9
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert list(folder.rglob(checkpoint.FILE))
    kept = shutil.copytree(folder, tmp_path / "kept")

    monkeypatch.setattr(sys, "argv", ["secateur", "another", "command"])
    ended = run(*given)
    assert ended.code == 2 and f"{out} holds a model" in ended.err
    monkeypatch.setattr(sys, "argv", ["secateur", *map(str, given)])
    ended = run(*given, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["out"] == str(out) and ended.json["params"]["pruned"] > 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not list(folder.rglob(checkpoint.FILE))
    assert run(*given).code == 2, "done: a model stands there"

    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    told = (out / "training.json").read_text()
    (out / "training.json").write_text(told.replace('"history": [\n', '"history": [1,\n'))
    assert run(*given).code == 2, "a checkpoint of another run"
    (out / "training.json").write_text(told)
    assert "had saved it" in " ".join(run(*given).out.split())
    assert not list(folder.rglob(FILE))
