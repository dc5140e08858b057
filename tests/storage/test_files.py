"""Directories of a few files appear whole or stay as they were."""

import os
from pathlib import Path

import pytest

from secateur.errors import UserError
from secateur.storage.directories.files import check_files, write_files

FILES = {"a.txt": "one", "b.txt": "two"}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_all_files_appear_and_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page"
    write_files(out, FILES)
    assert contents(out) == FILES
    write_files(out, FILES | {"a.txt": "new"}, overwrite=True)
    assert contents(out)["a.txt"] == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page"]


def test_checking_creates_nothing(tmp_path: Path) -> None:
    check_files(tmp_path / "x" / "y", FILES)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for out, words in ((tmp_path / "file", "no directory"), (tmp_path / "file" / "in", "cannot")):
        with pytest.raises(UserError, match=words):
            check_files(out, FILES)
    with pytest.raises(UserError, match="such as file"):
        check_files(tmp_path, FILES)


def test_what_was_there_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page"
    write_files(out, FILES)
    real = os.rename

    def full(source: str | Path, target: str | Path) -> None:
        if "unfinished" in str(source):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match="the disk is full; nothing was changed"):
        write_files(out, {"a.txt": "new", "b.txt": "new"}, overwrite=True)
    assert contents(out) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
