"""Files change together or not at all, wherever their writer is killed, and others stay."""

import errno
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest

from secateur.errors import Advice, UserError
from secateur.storage.directories.files import write_files
from secateur.whole import complete_file, mend, replacing, sweep, sweep_all, writing
from tests.killing import each_kill, failing_at

OLD = {"a.txt": "old a", "b.txt": "old b"}
NEW = {"a.txt": "new a", "b.txt": "new b"}
FOREIGN = {"notes.txt": "mine", ".hidden": "mine too"}


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir() if p.is_file()}


def fill(folder: Path, files: dict[str, str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def quietly_mend(out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Advice)
        mend(out, set(OLD))


def test_killed_at_every_event_of_a_replacement(tmp_path: Path) -> None:
    out, seen = tmp_path / "page", set()

    def renew() -> None:
        fill(tmp_path, {})
        fill(out, OLD | FOREIGN)
        (out / "drawings").mkdir()

    for _ in each_kill(lambda: write_files(out, NEW, overwrite=True), renew):
        assert contents(out).items() >= FOREIGN.items(), "also before anything is mended"
        quietly_mend(out)
        found = contents(out)
        assert found in (OLD | FOREIGN, NEW | FOREIGN)
        seen.add(found["a.txt"])
        assert (out / "drawings").is_dir()
        write_files(out, NEW, overwrite=True)
        assert contents(out) == NEW | FOREIGN
        assert {p.name for p in out.iterdir()} == {*NEW, *FOREIGN, "drawings"}, "nothing is left"
    assert seen == {"old a", "new a"}


def test_killed_at_every_event_of_a_first_writing(tmp_path: Path) -> None:
    out, seen = tmp_path / "page", set()
    for _ in each_kill(lambda: write_files(out, NEW), lambda: fill(tmp_path, FOREIGN)):
        assert not out.exists() or contents(out) == NEW
        seen.add(out.exists())
        write_files(out, NEW, overwrite=True)
        assert {p.name for p in tmp_path.iterdir()} == {"page", *FOREIGN}, "nothing is left"
    assert seen == {False, True}


def test_killed_while_a_file_and_its_companion_are_replaced(tmp_path: Path) -> None:
    path, old, new = tmp_path / "a.xml", {"a.bin": "1", "a.xml": "1"}, {"a.bin": "2", "a.xml": "2"}

    def write() -> None:
        with writing(path) as fresh:
            fresh.write_text("2")
            fresh.with_suffix(".bin").write_text("2")

    for _ in each_kill(write, lambda: fill(tmp_path, old | FOREIGN)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Advice)
            complete_file(path)
        assert contents(tmp_path) in (old | FOREIGN, new | FOREIGN)
        sweep(path)
        assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), KeyboardInterrupt()])
def test_failing_at_every_event(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "page"

    def fail() -> None:
        raise error

    for number in range(1, 1000):
        fill(tmp_path, {})
        fill(out, OLD | FOREIGN)
        told = None
        with failing_at(number, fail) as events:
            try:
                write_files(out, NEW, overwrite=True)
            except (UserError, KeyboardInterrupt) as caught:
                told = caught
        found = contents(out)
        if isinstance(told, UserError) and "nothing was changed" in str(told):
            assert found == OLD | FOREIGN, "as it was said"
        quietly_mend(out)
        assert contents(out) in (OLD | FOREIGN, NEW | FOREIGN)
        if len(events) < number:
            assert told is None and found == NEW | FOREIGN
            return


def test_a_completed_replacement_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "page", OLD)
    (tmp_path / "page" / ".secateur.replacement").mkdir()
    (tmp_path / "page" / ".secateur.replacement" / "a.txt").write_text("new a")
    with pytest.warns(Advice, match="completed .*page, which a run that was killed"):
        mend(tmp_path / "page", set(OLD))
    assert contents(tmp_path / "page") == OLD | {"a.txt": "new a"}, "no list of names: none is gone"


def test_names_in_a_replacement_reach_nothing_outside(tmp_path: Path) -> None:
    out = tmp_path / "page"
    fill(out, OLD)
    (tmp_path / "precious.txt").write_text("x")
    journal = out / ".secateur.replacement"
    journal.mkdir()
    (journal / ".names.json").write_text('["../precious.txt"]')
    (journal / "a.txt").write_text("new")
    quietly_mend(out)
    assert (tmp_path / "precious.txt").exists()
    # A link is none of ours.
    fill(out, OLD)
    fill(tmp_path / "elsewhere", {"a.txt": "theirs"})
    journal.symlink_to(tmp_path / "elsewhere")
    mend(out, set(OLD))
    assert (tmp_path / "elsewhere" / "a.txt").exists() and contents(out)["a.txt"] == "old a"


def test_what_living_processes_write_stays_until_they_are_dead(tmp_path: Path) -> None:
    out = tmp_path / "page"
    fill(out, OLD)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with replacing(out, set(OLD)) as folder, replacing(tmp_path / "new", ()) as other:
            (folder / "a.txt").write_text("half")
            (other / "a.txt").write_text("half")
            os.write(told, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    try:
        for place in (out, tmp_path / "new"):
            sweep(place)
        sweep_all(tmp_path)
        assert len(list(out.iterdir())) == 3 and len(list(tmp_path.iterdir())) == 2
        write_files(out, NEW, overwrite=True)
        assert len(list(out.iterdir())) == 3
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (out / ".secateur.unfinished-notes").mkdir()
    (out / ".secateur.unfinished-0123abcd").write_text("a file of that name")
    sweep(out)
    sweep(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["page"]
    left = {".secateur.unfinished-notes", ".secateur.unfinished-0123abcd"}
    assert {p.name for p in out.iterdir()} == {*NEW, *left}, "only what is surely ours is removed"


def test_a_directory_in_the_way_of_a_file(tmp_path: Path) -> None:
    out = tmp_path / "page"
    fill(out, {"b.txt": "old b"})
    (out / "a.txt").mkdir()
    with (
        pytest.raises(UserError, match=r"a\.txt is a directory, where a file must go"),
        replacing(out, set(OLD)) as folder,
    ):
        (folder / "a.txt").write_text("x")
        (folder / "b.txt").write_text("x")
    assert contents(out) == {"b.txt": "old b"} and (out / "a.txt").is_dir()
    assert len(list(out.iterdir())) == 2
