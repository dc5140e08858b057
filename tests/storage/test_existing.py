"""Saved models are replaced only when asked, and never lost, wherever a save is killed."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur.storage.save as saving
from secateur.errors import Advice, UserError
from secateur.storage.base import Base
from secateur.storage.directories.existing import described
from secateur.storage.identify import base_of
from secateur.storage.load import load
from secateur.storage.save import check_out, save
from tests.killing import KILLED, each_kill
from tests.storage.tiny import host, images, shrink_

NOTES = "ten years of work"


@pytest.fixture
def small() -> tuple[nn.Module, Base]:
    dense = host("vit")
    base = base_of(dense)
    model = shrink_(dense)
    with torch.no_grad():
        model.head.bias += 1
    return model, base


def _save(small: tuple[nn.Module, Base], out: Path, **more: object) -> str | None:
    given = {"provenance": {}, "results": {}, "extra_files": {"training.json": "{}"}, **more}
    return save(small[0], out, base=small[1], **given)  # type: ignore[arg-type]


def _quietly_loaded(out: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Advice)
        return load(out)


def test_replacing_needs_to_be_asked_for(saved: Path, small: tuple[nn.Module, Base]) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    for attempt in (lambda: check_out(saved), lambda: _save(small, saved)):
        with pytest.raises(UserError, match=r"small holds a model, saved on \d{4}-.*--overwrite"):
            attempt()
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert (check_out(saved, overwrite=True) or "").startswith("a model, saved on ")
    assert (_save(small, saved, overwrite=True) or "").startswith("a model, saved on ")
    assert _save(small, saved.parent / "other", overwrite=True) is None, "nothing was there"


def test_foreign_files_stay(saved: Path, small: tuple[nn.Module, Base]) -> None:
    (saved / "notes.txt").write_text(NOTES)
    (saved / "export").mkdir()
    (saved / "export" / "small.onnx").write_text("graph")
    inode = (saved / "notes.txt").stat().st_ino
    _save(small, saved, overwrite=True)
    assert (saved / "notes.txt").read_text() == NOTES
    assert (saved / "notes.txt").stat().st_ino == inode, "not even moved"
    assert (saved / "export" / "small.onnx").read_text() == "graph"
    x = images(small[0])
    assert torch.equal(load(saved)(x), small[0](x))


@pytest.mark.parametrize(
    ("provenance", "words"),
    [
        ({"budget": "50% macs"}, "a model pruned to 50% macs, saved on "),
        ({"budget": "drop 4 mlp"}, "a model pruned by 'drop 4 mlp', saved on "),
        (
            {"budget": "50% macs", "learning": {}, "heal": {"budget": "20 epochs"}},
            "a model pruned with learned masks to 50% macs, healed (20 epochs), saved on ",
        ),
        ({"train": {"budget": "3 epochs"}}, "a model trained (3 epochs), saved on "),
        ({"budget": 7, "train": "x", "heal": {"budget": []}}, "a model healed, saved on "),
        ({"budget": "9\n" * 4000}, "a model pruned to 9 9 9"),
    ],
)
def test_what_is_there_is_told(
    small: tuple[nn.Module, Base], tmp_path: Path, provenance: dict[str, object], words: str
) -> None:
    _save(small, tmp_path / "small", provenance=provenance)
    told = described(tmp_path / "small")
    assert told.startswith(words) and len(told) < 150 and "\n" not in told


def _killed_saves(small: tuple[nn.Module, Base], out: Path, old: Path | None) -> set[bool]:
    """Kill a save at every event; whether the new model was there afterwards, in all outcomes."""
    torch.set_num_threads(1)
    x = images(small[0])
    new, real, seen = small[0](x), saving.save_file, set()
    before = None if old is None else load(old)(x)

    def renew() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if old is not None:
            shutil.copytree(old, out)
            (out / "report.html").write_text("old")
            (out / "notes.txt").write_text(NOTES)

    for _ in each_kill(lambda: _save(small, out, overwrite=True), renew):
        assert old is None or (out / "notes.txt").read_text() == NOTES
        if old is None and not out.exists():
            seen.add(False)
        else:
            found = _quietly_loaded(out)(x)
            is_new = torch.equal(found, new)
            assert is_new or (before is not None and torch.equal(found, before))
            assert (out / "training.json").exists() is is_new
            assert (out / "report.html").exists() is not is_new or old is None
            seen.add(is_new)
        check_out(out, overwrite=True)
        kept = {"README.md", "model.safetensors", "spec.json", "notes.txt"}
        kept |= {"report.html", "training.json"}
        assert not out.exists() or {p.name for p in out.iterdir()} <= kept, "nothing hidden is left"
        assert [p.name for p in out.parent.iterdir()] in ([], ["small"])
    assert saving.save_file is real
    return seen


def test_killed_at_every_event_of_a_replacement(
    saved: Path, small: tuple[nn.Module, Base], tmp_path: Path
) -> None:
    assert _killed_saves(small, tmp_path / "place" / "small", saved) == {False, True}


def test_killed_at_every_event_of_a_first_save(
    small: tuple[nn.Module, Base], tmp_path: Path
) -> None:
    assert _killed_saves(small, tmp_path / "place" / "small", None) == {False, True}


def test_killed_in_the_middle_of_the_weights(
    saved: Path, small: tuple[nn.Module, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)

    def half(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half")
        os._exit(KILLED)

    monkeypatch.setattr(saving, "save_file", half)
    child = os.fork()
    if child == 0:
        _save(small, saved, overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    assert any(p.name.startswith(".") for p in saved.iterdir())
    load(saved)
    check_out(saved, overwrite=True)
    assert not any(p.name.startswith(".") for p in saved.iterdir())


def _move_aside(saved: Path) -> Path:
    """What a save of an earlier version left when it was killed between its two renames."""
    aside = saved.with_name(f".{saved.name}.old-0123abcd")
    (saved / "notes.txt").write_text(NOTES)
    os.rename(saved, aside)
    saved.with_name(f".{saved.name}.unfinished-0123abcd").mkdir()
    return aside


def test_a_copy_left_aside_is_restored_by_load(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = _move_aside(saved)
    with pytest.warns(Advice, match=r"restored .*small from \.small\.old-0123abcd"):
        load(saved)
    assert not aside.exists() and (saved / "notes.txt").read_text() == NOTES
    os.rename(saved, aside)
    monkeypatch.chdir(saved.parent)
    with pytest.warns(Advice, match="restored"):
        load("small")


def test_a_copy_left_aside_is_restored_by_save(saved: Path, small: tuple[nn.Module, Base]) -> None:
    _move_aside(saved)
    with (
        pytest.warns(Advice, match="restored"),
        pytest.raises(UserError, match="holds a model"),
    ):
        _save(small, saved)
    assert check_out(saved, overwrite=True) is not None
    assert [p.name for p in saved.parent.iterdir()] == ["small"], "and what it left is removed"
    load(saved)


def test_foreign_files_left_aside_come_back(saved: Path) -> None:
    shutil.copytree(saved, saved.with_name("copy"))
    aside = _move_aside(saved)
    os.rename(saved.with_name("copy"), saved)
    load(saved)
    assert (saved / "notes.txt").read_text() == NOTES and not aside.exists()


def test_a_damaged_copy_aside_is_left_alone(saved: Path) -> None:
    aside = _move_aside(saved)
    (aside / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="no directory"):
        load(saved)
    assert (aside / "notes.txt").exists()
    spec = json.loads((aside / "spec.json").read_text())
    assert spec["format"] == 1
