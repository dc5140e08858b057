"""The present contents of an output directory: ours or not, and what killed runs left of it."""

import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from secateur.errors import Advice, UserError
from secateur.storage.spec import CARD, SPEC, WEIGHTS, Spec, read_spec
from secateur.whole import SELF, mend, reason_of, sweep

MODEL_FILES = frozenset({SPEC, WEIGHTS, CARD, "report.html", "training.json"})
"""All that secateur writes into the directory of a model; other files there are the user's."""

LONGEST = 80
"""Characters of a saved text that a message quotes."""

IsWhole = Callable[[Path], bool]


def require_place(out: Path) -> None:
    """UserError where no directory `out` could be written; nothing is left of the trial."""
    if not out.is_dir() and (out.exists() or out.is_symlink()):
        raise UserError(f"{out} exists and is no directory; choose another output directory.")
    parent = out.resolve()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{out} cannot be made: {parent} is no directory.")
    # WHY this name: should a run be killed right here, the next one removes the trial.
    stem = SELF if out.is_dir() else out.name
    trial = parent / f".{stem}.unfinished-{secrets.token_hex(4)}"
    try:
        trial.mkdir()
        with suppress(FileNotFoundError):
            trial.rmdir()
    except OSError as error:
        raise UserError(
            f"cannot write to {parent} ({reason_of(error)}); choose another output directory."
        ) from error


def refuse_replacing(out: Path, what: str) -> UserError:
    """The refusal to replace `what`, which the directory `out` holds, unasked."""
    return UserError(
        f"{out} holds {what}; choose another output directory, or replace it with --overwrite "
        "(overwrite=True in Python)."
    )


def saved_on(path: Path) -> str:
    """The time at which a file was written, as people write it."""
    return f"saved on {datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"


def described(out: Path) -> str:
    """The model saved in `out`, in a few words; UserError when there is none."""
    return f"{_origin(read_spec(out))}, {saved_on(out / SPEC)}"


def _origin(spec: Spec) -> str:
    known, told = spec.provenance, []
    goal = _short(known.get("budget"))
    if goal is not None:
        verb = "pruned with learned masks" if "learning" in known else "pruned"
        told.append(f"{verb} to {goal}" if goal[0].isdecimal() else f"{verb} by '{goal}'")
    for key, word in (("train", "trained"), ("heal", "healed")):
        training = known.get(key)
        if isinstance(training, dict):
            length = _short(training.get("budget"))
            told.append(word if length is None else f"{word} ({length})")
    return " ".join(["a model", ", ".join(told)]).rstrip()


def _short(value: object) -> str | None:
    """A text of a file in at most one line; None for anything else."""
    if not isinstance(value, str) or not (words := " ".join(value.split())):
        return None
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


def mend_model(out: Path) -> None:
    """Bring back a model that a killed run left between two states; Advice tells of it."""
    mend_all(out, MODEL_FILES, is_whole_model)


def mend_all(out: Path, own: Collection[str], is_whole: IsWhole) -> None:
    """Complete what a killed run had begun in `out`, or restore the copy that it left beside it."""
    if out.name in ("", "..") and not out.is_dir():
        return
    out = out.resolve()
    if out.is_dir():
        mend(out, own)
    _restore(out, own, is_whole)


def clear(out: Path) -> None:
    """Remove what killed runs left unfinished in and beside `out`."""
    with suppress(OSError):
        sweep(out.resolve())


def is_whole_model(folder: Path) -> bool:
    """Whether a directory holds a spec and a file of weights of the size that it names."""
    try:
        return (folder / WEIGHTS).stat().st_size == read_spec(folder).weights.bytes
    except (OSError, UserError):
        return False


def _restore(out: Path, own: Collection[str], is_whole: IsWhole) -> None:
    """Earlier versions moved the old directory aside, to `.NAME.old-…`, before the new came."""
    aside = _aside(out)
    if not aside:
        return
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        whole = next((path for path in aside if is_whole(path)), None)
        if whole is None:
            return
        try:
            os.rename(whole, out)
        except OSError as error:
            raise UserError(
                f"a run that was killed left {out} at {whole}, from where it cannot be moved back "
                f"({reason_of(error)}); move it there yourself."
            ) from error
        warnings.warn(
            f"restored {out} from {whole.name}, where a run that was killed had left it",
            Advice,
            stacklevel=4,
        )
    elif is_whole(out):
        for path in aside:
            with suppress(OSError):
                _take_back(path, out, own)


def _aside(out: Path) -> list[Path]:
    """Directories that were moved aside, the newest first."""
    name = re.compile(rf"\.{re.escape(out.name)}\.old-[0-9a-f]{{8}}")
    try:
        found = [p for p in out.parent.iterdir() if name.fullmatch(p.name)]
        found = [p for p in found if p.is_dir() and not p.is_symlink()]
        return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)
    except OSError:
        return []


def _take_back(aside: Path, out: Path, own: Collection[str]) -> None:
    """Remove a replaced directory once files that were not ours are back in `out`."""
    for path in aside.iterdir():
        if path.name not in own and not os.path.lexists(out / path.name):
            os.rename(path, out / path.name)
    if {path.name for path in aside.iterdir()} <= set(own):
        shutil.rmtree(aside)
