"""What a field of a request means, and how its text on the command line becomes a value."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, MISSING, Field, dataclass, fields
from importlib.resources import files
from inspect import get_annotations
from typing import Annotated, Any, get_args, get_origin

MODEL, IMAGES, UNITS, LATENCY = "Model", "Images", "Units", "Latency"
REFERENCE, MACHINE, TRAINING = "Reference", "Machine", "Training"
SAME = object()


@dataclass(frozen=True)
class Say:
    """The help of a field, and how the command line offers it: `Annotated[int, Say("...")]`.

    `flag` replaces the option named like the field. `read(option, given)` makes the value from
    what was typed, whose type is that of its second parameter; it raises UserError. `default`
    differs from the field's where the command line does something else unless told. `shown` is
    what help names as the default. Fields without a Say are for Python only.
    """

    help: str
    panel: str | None = None
    _: KW_ONLY
    metavar: str | None = None
    flag: str | None = None
    read: Callable[[str, Any], Any] | None = None
    default: Any = SAME
    shown: str | bool | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A field that the command line offers: its type and default there, and what it means."""

    name: str
    kind: Any
    default: Any
    say: Say

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        named = self.say.flag or f"--{self.name.replace('_', '-')}"
        return named.partition("/")[0]

    def value(self, given: Any) -> Any:
        """The value of the field from what was typed; UserError where it makes none."""
        if self.say.read is None or given is None:
            return given
        return self.say.read(self.flag, given)


def own_first(request: type) -> list[Field[Any]]:
    """The fields of a request: its own before those of the parts that it is built of."""
    found = {field.name: field for field in fields(request)}
    order = [name for part in request.__mro__ for name in get_annotations(part)]
    return [found[name] for name in dict.fromkeys(order) if name in found]


def said(annotation: Any) -> tuple[Any, Say] | None:
    """Type and Say of an annotation; None without a Say."""
    if get_origin(annotation) is not Annotated:
        return None
    kind, *more = get_args(annotation)
    return next(((kind, one) for one in more if isinstance(one, Say)), None)


def options_of(request: type) -> Iterator[Option]:
    """What the command line offers of a request."""
    for field in own_first(request):
        if (found := said(field.type)) is not None:
            yield option(field.name, *found, field.default)


def option(name: str, kind: Any, say: Say, default: Any) -> Option:
    """The option of a field or a parameter with this default (MISSING: none)."""
    if say.default is not SAME:
        default = say.default
    if say.read is not None:
        kind = list(say.read.__annotations__.values())[1]
        if default is None or default == ():
            kind, default = kind | None, None
    return Option(name=name, kind=kind, default=default, say=say)


def shipped(folder: str, ending: str) -> str:
    """The names of extensions or files that ship with secateur, without importing anything."""
    there = files("secateur").joinpath(*folder.split("/")).iterdir()
    names = (f.name.removesuffix(ending) for f in there if f.name.endswith(ending))
    return ", ".join(sorted(name for name in names if not name.startswith("_")))
