"""A directory that one process writes to alone, for as long as it lives."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from secateur.errors import UserError
from secateur.whole import reason_of

try:
    import fcntl
except ImportError:  # pragma: no cover - only Windows lacks it
    fcntl = None  # type: ignore[assignment]

FILE = ".secateur.lock"
"""In a directory that is held: who holds it. Left behind by a process that was killed."""

LARGEST = 1024

_HELD: dict[Path, int] = {}
"""Threads of this process, by the directory that they hold."""

os.register_at_fork(after_in_child=_HELD.clear)


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Hold a directory for this thread while the body runs; it is made where it is missing.

    A thread that holds it already may hold it again. The system ends the hold of a process that
    dies, however it dies. Where there are no locks of files, as on Windows, other threads are kept
    out, other processes are not. What was made for the hold is removed after it, directories only
    if they are empty. UserError, which names the owner, where another holds the directory, and
    where it cannot be written to.
    """
    folder, thread = folder.resolve(), threading.get_ident()
    if _HELD.get(folder) == thread:
        yield
        return
    if _HELD.setdefault(folder, thread) != thread:
        raise _taken(folder, "another thread of this process has been writing to it")
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(folder)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {reason_of(error)}.") from error
        try:
            yield
        finally:
            # WHY in this order: once the lock is free, the file may be the next owner's.
            with suppress(OSError):
                (folder / FILE).unlink()
            os.close(lock)
            with suppress(OSError):
                for path in made:
                    path.rmdir()
    finally:
        del _HELD[folder]


def _locked(folder: Path) -> int:
    """The open file that holds a directory."""
    path = folder / FILE
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # WHY not flock: forked workers would go on holding what a killed process held.
            if fcntl is not None:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = _owner(lock)
            os.close(lock)
            raise _taken(folder, owner) from error
        except OSError:
            # Some network file systems lock nothing.
            pass
        # WHY: its owner may have removed the file before it was locked here.
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                os.ftruncate(lock, 0)
                os.write(lock, json.dumps(_self()).encode())
                return lock
        os.close(lock)


def _self() -> dict[str, object]:
    return {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def _owner(lock: int) -> str:
    """Who holds an open file, in words; its text may not be written yet."""
    try:
        found = json.loads(os.read(lock, LARGEST))
        number, machine, since = (found[key] for key in ("process", "machine", "since"))
        return f"process {number:d} on {machine:.80} has been writing to it since {since:.19}"
    except (LookupError, OSError, RecursionError, TypeError, ValueError):
        return "another process is writing to it"


def _taken(folder: Path, owner: str) -> UserError:
    return UserError(
        f"{folder} is in use: {owner}; wait until it has ended and give the same command again, or "
        "choose another output directory."
    )
