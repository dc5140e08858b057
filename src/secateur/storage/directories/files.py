"""Directories of a few files made by secateur, such as the page of an analysis: whole or not."""

from collections.abc import Collection, Mapping
from pathlib import Path

from secateur.errors import UserError
from secateur.storage.directories.existing import (
    clear,
    mend_all,
    refuse_replacing,
    require_place,
    saved_on,
)
from secateur.whole import reason_of, replacing


def check_files(
    out: str | Path, names: Collection[str], *, overwrite: bool = False, what: str = "such files"
) -> str | None:
    """Refuse, before any long work, a directory that could not be written.

    Free names and empty directories are allowed; with `overwrite` also those that hold all files
    of these names, as `what`, which is returned in words. Other files beside them stay. Completes
    and removes what killed runs left, and creates nothing.
    """
    out = Path(out)
    mend_all(out, names, lambda folder: all((folder / name).is_file() for name in names))
    require_place(out)
    clear(out)
    present = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not present:
        return None
    if not present >= set(names):
        first = min(present - set(names), default=min(present))
        raise UserError(
            f"{out} holds other files, such as {first}; choose another output directory."
        )
    told = f"{what}, {saved_on(out / min(names))}"
    if not overwrite:
        raise refuse_replacing(out, told)
    return told


def write_files(
    out: str | Path, files: Mapping[str, str], *, overwrite: bool = False, what: str = "such files"
) -> str | None:
    """Write text files into the directory `out`, which has all of them or stays as it was.

    Returns in words what they replace. Raises UserError for a directory that `check_files`
    refuses, or when the system does.
    """
    replaced = check_files(out, set(files), overwrite=overwrite, what=what)
    out = Path(out).resolve()
    try:
        with replacing(out, set(files)) as folder:
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {out}: {reason_of(error)}; nothing was changed."
        ) from error
    return replaced
