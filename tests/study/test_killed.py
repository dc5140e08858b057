"""A study that is killed wherever it writes goes on; two do not write to one place at once."""

import errno
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import UserError
from secateur.locks import FILE, sole
from secateur.study import latency, runner
from secateur.study.runner import run_study
from secateur.study.worker import Worker
from tests.killing import each_kill, failing_at
from tests.study.conftest import Write
from tests.study.test_runner import rows

ONE = {
    "structures": ["hidden"],
    "scores": ["magnitude"],
    "budgets": ["80% macs"],
    "repair": ["none"],
    "seeds": [0],
    "latency": {"batch": 1, "seconds": 0.001, "clock": "processor"},
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long happens once and is remembered; all that writes stays as it is."""
    kept: dict[str, Any] = {}

    def remember(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def once(*given: Any) -> Any:
            if name not in kept:
                kept[name] = real(*given)
            return kept[name]

        return once

    for place, name in ((runner, "_open_hosts"), (Worker, "run"), (latency, "_measure")):
        monkeypatch.setattr(place, name, remember(name, getattr(place, name)))


def counts(out: Path) -> dict[str, int]:
    names = ("about", "dense", "cells", "scores", "latency")
    with sqlite3.connect(out / "results.sqlite") as base:
        return {n: base.execute(f"SELECT count(*) FROM {n}").fetchone()[0] for n in names}


@pytest.mark.usefixtures("quick")
def test_killed_at_every_statement_and_file_event(write: Write, tmp_path: Path) -> None:
    path, whole, out = write(**ONE), tmp_path / "whole", tmp_path / "out"
    run_study(path, whole)
    expected, seen = rows(whole), set()
    for _ in each_kill(lambda: run_study(path, out), lambda: shutil.rmtree(out, True)):
        page = out / "report.html"
        assert not page.exists() or page.read_text(encoding="utf-8").rstrip().endswith("</html>")
        had = (out / "results.sqlite").exists() and len(rows(out))
        seen.add((had, page.exists()))
        again = run_study(path, out)
        assert again.ran == 1 - int(had) and rows(out) == expected
        assert counts(out) == counts(whole)
        assert {p.name for p in out.iterdir()} == {"results.sqlite", "report.html"}
    assert seen == {(0, False), (1, False), (1, True)}


HALVES = {
    "an empty file": [],
    "no tables": ["CREATE TABLE x (y)", "DROP TABLE x"],
    "one table": ["CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL)"],
    "a table but about": ["CREATE TABLE dense (model TEXT PRIMARY KEY)"],
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("half", HALVES)
def test_a_half_created_store_is_nothing(half: str, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.sqlite").touch()
    (out / "results.sqlite-journal").write_bytes(b"left behind")
    with sqlite3.connect(out / "results.sqlite") as base:
        for statement in HALVES[half]:
            base.execute(statement)
    path = write(**ONE | {"latency": None})
    with pytest.raises(UserError, match=r"no store in .* to write a page from"):
        run_study(path, out, only_page=True)
    assert run_study(path, out).ran == 1 and len(rows(out)) == 1


FOREIGN = {
    "another table": ["CREATE TABLE contacts (name)", "INSERT INTO contacts VALUES ('Ada')"],
    "an empty table of another name": ["CREATE TABLE contacts (name)"],
    "a table of a name of ours": ["CREATE TABLE cells (name)", "INSERT INTO cells VALUES (1)"],
    "other columns": ["CREATE TABLE about (name)"],
    "a mark": ["PRAGMA user_version = 7"],
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_other_databases_are_refused_and_stay(foreign: str, write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with sqlite3.connect(out / "results.sqlite") as base:
        for statement in FOREIGN[foreign]:
            base.execute(statement)
    before = (out / "results.sqlite").read_bytes()
    with pytest.raises(UserError, match="is no store of a study") as caught:
        run_study(write(**ONE), out)
    assert "\n" not in str(caught.value)
    assert (out / "results.sqlite").read_bytes() == before
    assert [p.name for p in out.iterdir()] == ["results.sqlite"]


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_said_and_finished_cells_stay(write: Write, tmp_path: Path) -> None:
    path, out = write(**ONE), tmp_path / "out"

    for number in range(1, 1000):
        told, events = None, []

        def full(events: list[str] = events) -> None:
            if events[-1].startswith("execute"):
                raise sqlite3.OperationalError("database or disk is full")
            if events[-1] != "close":
                raise OSError(errno.ENOSPC, "No space left on device")

        with failing_at(number, full, events):
            try:
                run_study(path, out)
            except UserError as error:
                told = str(error)
        if len(events) < number:
            assert told is None
            break
        if told is not None:
            assert "disk is full" in told and "\n" not in told
        kept = len(rows(out)) if (out / "results.sqlite").exists() else 0
        assert run_study(path, out).ran == 1 - kept
        shutil.rmtree(out)
    assert number > 20 and len(rows(out)) == 1


@contextmanager
def another(folder: Path) -> Iterator[int]:
    """Another process that holds a directory and is killed in the end."""
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with sole(folder):
            os.write(tell, b"x")
            signal.pause()
        os._exit(0)
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_process_is_told_who_writes(write: Write, tmp_path: Path) -> None:
    path, out = write(**ONE | {"latency": None}), tmp_path / "out"
    run_study(path, out)
    with another(out) as child:
        with pytest.raises(UserError, match=f"out is in use: process {child} on .* since 20"):
            run_study(path, out)
        page = out / "report.html"
        page.unlink()
        assert run_study(path, out, only_page=True).ran == 0 and page.exists()
    assert (out / FILE).exists(), "the lock of the dead"
    assert run_study(path, out).ran == 0
    assert not (out / FILE).exists()


def test_the_lock_of_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with sole(folder), sole(folder):
        pid = os.fork()
        if pid == 0:
            try:
                with sole(folder):
                    os._exit(1)
            except UserError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not (tmp_path / "a").exists(), "what was made for the lock is gone"
    with sole(folder):
        (folder / "kept.txt").touch()
    assert [p.name for p in folder.iterdir()] == ["kept.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"), sole(tmp_path / "file"):
        pass
