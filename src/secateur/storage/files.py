"""Directories of a few files made by secateur, such as the page of an analysis: whole or not."""

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from secateur.errors import UserError


def check_files(out: str | Path, names: Iterable[str]) -> None:
    """Refuse, before any long work, a directory that could not be written; creates nothing.

    Free names, empty directories and those with nothing but files of these names are allowed.
    """
    out = Path(out)
    if out.is_dir():
        others = sorted({path.name for path in out.iterdir()} - set(names))
        if others:
            raise UserError(
                f"{out} holds other files, such as {others[0]}; choose another output directory."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out} exists and is no directory; choose another output directory.")
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write to {parent}; choose another output directory.")


def write_files(out: str | Path, files: Mapping[str, str]) -> None:
    """Write text files into the directory `out`, which has all of them or stays as it was.

    Raises UserError for a directory that `check_files` refuses, or when the system does.
    """
    check_files(out, files)
    out = Path(out).resolve()
    fresh = out.with_name(f".{out.name}.unfinished-{secrets.token_hex(4)}")
    old = out.with_name(f".{out.name}.old-{secrets.token_hex(4)}")
    try:
        fresh.mkdir(parents=True)
        for name, text in files.items():
            (fresh / name).write_text(text, encoding="utf-8")
        if out.exists():
            os.rename(out, old)
        os.rename(fresh, out)
    except OSError as error:
        if old.exists() and not out.exists():
            os.rename(old, out)
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise UserError(f"cannot write to {out}: {reason}; nothing was changed.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
