"""Files and directories appear whole or not at all, and nothing else beside them changes.

New files are written into a hidden directory, which its writer holds locked, so that a later run
can tell what a killed run left from work in progress. They are written to the disk before they
take the place of older ones. Where several files must change together, one rename of the hidden
directory decides: before it the old files count, after it the new ones, and whoever comes next
moves those that a killed writer did not move any more.
"""

import errno
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import Advice, UserError

try:
    import fcntl
except ImportError:  # pragma: no cover - only Windows lacks it
    fcntl = None  # type: ignore[assignment]

SELF = "secateur"
"""What hidden directories inside an output directory are named after."""

NAMES = ".names.json"
"""In a replacement: the names of all its files, also of those that were moved already."""

LARGEST_NAMES = 2**16


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to; the file then takes the place of `path`, with any written beside it.

    When the body fails, all stays as it was. OSError as the system raises it.
    """
    complete_file(path)
    journal = _journal(path.parent, path.name)
    with _staged(path.parent, path.name) as folder:
        yield folder / path.name
        fresh = _sync(folder)
        if fresh == [path.name]:
            os.replace(folder / path.name, path)
            _sync_folder(path.parent)
        else:
            _exchange(folder, fresh, path.parent, journal, ())


@contextmanager
def replacing(out: Path, own: Collection[str]) -> Iterator[Path]:
    """An empty directory to fill, whose files then take the place of those in the directory `out`.

    Of what `out` holds, the names in `own` that were not written anew are removed; all others
    stay untouched. When the body fails, all stays as it was. OSError as the system raises it;
    UserError when a directory has the name of a new file.
    """
    inside = out.is_dir()
    parent, stem = (out, SELF) if inside else (out.parent, out.name)
    parent.mkdir(parents=True, exist_ok=True)
    with _staged(parent, stem) as folder:
        yield folder
        fresh = _sync(folder)
        if inside:
            _exchange(folder, fresh, out, _journal(out, SELF), own)
        else:
            os.rename(folder, out)
            _sync_folder(parent)


def mend(out: Path, own: Collection[str]) -> None:
    """Complete the replacement of files in the directory `out` that a killed run had begun.

    Advice tells of it; UserError when that is impossible.
    """
    if _complete(out, _journal(out, SELF), own):
        _tell(out)


def complete_file(path: Path) -> None:
    """The same for a file with others beside it, as `writing` writes them."""
    if _complete(path.parent, _journal(path.parent, path.name), ()):
        _tell(path)


def _tell(path: Path) -> None:
    warnings.warn(
        f"completed {path}, which a run that was killed had begun to replace", Advice, stacklevel=4
    )


def _complete(target: Path, journal: Path, own: Collection[str]) -> bool:
    """Move what is left in `journal` to `target`; whether there was anything."""
    if not _is_folder(journal):
        return False
    with _holding(target):
        # WHY again: its writer, alive after all, may have been about to move the last file.
        if not _is_folder(journal):
            return False
        _move(journal, target, own)
    return True


def sweep(out: Path) -> None:
    """Remove what killed runs left unfinished, in and beside a directory or beside a file `out`."""
    _sweep(out.parent, out.name)
    if _is_folder(out):
        _sweep(out, SELF)


def reason_of(error: Exception) -> str:
    """Why the system refused, in words; safetensors reports the number in its text only."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number == errno.ENOSPC:
        return "the disk is full"
    return str(error).rstrip(".") if number is None else os.strerror(number).lower()


def _journal(folder: Path, stem: str) -> Path:
    return folder / f".{stem}.replacement"


def _exchange(
    folder: Path, fresh: list[str], target: Path, journal: Path, own: Collection[str]
) -> None:
    for name in fresh:
        if _is_folder(target / name):
            raise UserError(f"{target / name} is a directory, where a file must go; move it away.")
    (folder / NAMES).write_text(json.dumps(fresh), encoding="utf-8")
    _sync(folder)
    with _holding(target):
        if _is_folder(journal):
            _move(journal, target, own)
        os.rename(folder, journal)
        _sync_folder(target)
        _move(journal, target, own)


def _move(journal: Path, target: Path, own: Collection[str]) -> None:
    try:
        fresh = _names(journal)
        for name in sorted(set(own) - set(fresh)):
            if fresh and not _is_folder(target / name):
                (target / name).unlink(missing_ok=True)
        for path in sorted(journal.iterdir()):
            if path.name != NAMES:
                os.replace(path, target / path.name)
        _sync_folder(target)
        (journal / NAMES).unlink(missing_ok=True)
        journal.rmdir()
    except OSError as error:
        raise UserError(
            f"the new files could not all be moved to {target} ({reason_of(error)}); they are safe "
            f"in {journal}: mend the cause and give the same command again."
        ) from error


def _names(journal: Path) -> list[str]:
    """Names of all new files; none, so that nothing is removed, where they are not known."""
    path = journal / NAMES
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= LARGEST_NAMES:
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, list) and all(isinstance(name, str) for name in found):
                return found
    return []


@contextmanager
def _staged(parent: Path, stem: str) -> Iterator[Path]:
    """A new hidden directory, locked while it is written to; removed where it still is."""
    _sweep(parent, stem)
    lock = None
    while lock is None:
        path = parent / f".{stem}.unfinished-{secrets.token_hex(4)}"
        path.mkdir()
        lock = _lock(path, wait=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep_all(folder: Path) -> None:
    """Remove what killed runs left unfinished in a directory that is only ours."""
    _sweep(folder, None)


def _sweep(parent: Path, stem: str | None) -> None:
    name = ".+" if stem is None else re.escape(stem)
    dead = re.compile(rf"\.{name}\.unfinished-[0-9a-f]{{8}}")
    with suppress(OSError):
        for path in parent.iterdir():
            if dead.fullmatch(path.name) and _is_folder(path):
                _remove_dead(path)


def _remove_dead(path: Path) -> None:
    """Remove a directory unless a process holds it, or none can be asked."""
    lock = _lock(path, wait=False)
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(path: Path, *, wait: bool) -> int | None:
    """An open, locked directory. None if it is gone, or not to wait for and held or unlockable."""
    try:
        found = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        # Windows opens no directories.
        return os.open(os.devnull, os.O_RDONLY) if wait else None
    try:
        if fcntl is None:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        fcntl.flock(found, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        # Some network file systems lock no directories: then nothing counts as dead.
        if not wait:
            os.close(found)
            return None
    if wait and not _same(found, path):
        os.close(found)
        return None
    return found


def _same(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except OSError:
        return False


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    """The directory locked, so that no two processes move files into it at once."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _sync(folder: Path) -> list[str]:
    """Write the files of a directory to the disk; their names."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)
    return names


def _sync_folder(folder: Path) -> None:
    # Not every file system can do that, and none needs it to be right while the machine runs.
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
