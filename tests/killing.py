"""End a process, or fail a call, at the n-th change that an action makes to files and stores."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CALLS = ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync")
"""The functions of `os` through which pathlib, shutil and secateur change what is on the disk."""

KILLED = 9


def each_kill(action: Callable[[], object], renew: Callable[[], object]) -> Iterator[int]:
    """Kill `action`, in a child, at its 1st, 2nd, ... event; yields after each, until it ends.

    `renew` is called before each. Nothing is cleaned up, as after SIGKILL; files that are being
    written are left half-written.
    """
    for number in range(1, 1000):
        renew()
        code = _in_child(action, number)
        assert code in (0, KILLED), "the action failed by itself"
        yield number
        if code == 0:
            assert number > len(CALLS), "events were seen"
            return
    raise AssertionError("the action did not end")


def _in_child(action: Callable[[], object], number: int) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with failing_at(number, lambda: os._exit(KILLED)):
                action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def failing_at(
    number: int, end: Callable[[], object], seen: list[str] | None = None
) -> Iterator[list[str]]:
    """Call `end` in place of the `number`-th event; yields, or adds to `seen`, the names so far.

    Statements of SQL are events, too, wherever in a transaction they stand.
    """
    seen = [] if seen is None else seen

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                if name == "write_text":
                    real(given[0], given[1][: len(given[1]) // 2], **more)
                end()
            return real(*given, **more)

        return call

    class Watched(sqlite3.Connection):
        execute = watched("execute", sqlite3.Connection.execute)
        executescript = watched("executescript", sqlite3.Connection.executescript)
        executemany = watched("executemany", sqlite3.Connection.executemany)
        close = watched("close", sqlite3.Connection.close)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
        for name in CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(Path, "write_text", watched("write_text", Path.write_text))
        yield seen
