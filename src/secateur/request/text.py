"""How text of the command line becomes values; each takes the option's name for its message."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from secateur.errors import UserError


def numbers(option: str, given: str) -> float | tuple[float, ...]:
    """One number, or several with commas between them; UserError for anything else."""
    try:
        values = tuple(float(part) for part in given.split(","))
    except ValueError:
        raise UserError(
            f"{option} {given} is no list of numbers; write for example 0.5 or 0.485,0.456,0.406."
        ) from None
    return values[0] if len(values) == 1 else values


def counts(option: str, given: str) -> Sequence[int]:
    """Numbers above 0 with commas between them; UserError for anything else."""
    parts = names(option, given)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {given} cannot be understood; write for example 1,8.")
    return [int(part) for part in parts]


def text(_: str, given: str) -> str:
    """The text as it is, for a field that Python gives other values as well."""
    return given


def path(_: str, given: Path) -> Path:
    """A path, for a field that takes text as well in Python."""
    return given


def names(_: str, given: str) -> Sequence[str]:
    """Names with commas between them."""
    return [part.strip() for part in given.split(",") if part.strip()]


def widths(option: str, given: str) -> Mapping[str, int]:
    """`hidden=32,qk=16` as a mapping; UserError for anything else."""
    sizes: dict[str, int] = {}
    for part in names(option, given):
        name, equals, number = part.partition("=")
        if not equals or not number.strip().isdecimal():
            raise UserError(
                f"{option} {given} cannot be understood; write for example {option} "
                "hidden=32,qk=16."
            )
        sizes[name.strip()] = int(number)
    return sizes


def all_if_zero(_: str, given: int) -> int | None:
    """A limit, where 0 means none."""
    return given or None
