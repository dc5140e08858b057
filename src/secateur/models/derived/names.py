"""Look up the names that a statement gives, in a model, a block or a layer."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from torch import nn

from secateur.errors import UserError

MISSING = object()
NO_NAMES = ("layers", "path", "classes", "call", "argument", "apply", "shared", "beside", "windows")
"""Fields that name nothing in the module that the others are relative to."""


def names_in(fact: Any) -> Iterator[str]:
    """All names that a fact states, in the module that it is about."""
    if isinstance(fact, str):
        yield fact
    elif isinstance(fact, tuple | Mapping):
        for item in fact:
            yield from names_in(item)
    elif is_dataclass(fact):
        for part in fields(fact):
            if part.name not in NO_NAMES:
                yield from names_in(getattr(fact, part.name))


def member(owner: nn.Module, path: str) -> object:
    """What stands under a stated name; UserError when nothing does, unless it ends in "?"."""
    at: object = owner
    for name in _parts(path):
        below = getattr(at, name, MISSING)
        if below is MISSING:
            if at is None or isinstance(at, nn.Identity) or path.endswith("?"):
                return None
            raise UserError(
                f"'{path}' is stated, but a {type(owner).__name__} has nothing under that name"
            )
        at = below
    return at


def stands_at(owner: nn.Module, path: str | None) -> object:
    """What stands under a name; None where nothing does."""
    at: object = owner if path else None
    for name in _parts(path or ""):
        at = getattr(at, name, None)
    return at


def optional(owner: nn.Module, path: str | None) -> nn.Module | None:
    """The module at a path; None where there is none, or an Identity."""
    found = stands_at(owner, path)
    return found if isinstance(found, nn.Module) and not isinstance(found, nn.Identity) else None


def present(owner: nn.Module, *paths: str | None) -> dict[str, nn.Module]:
    """The modules at those of the paths where one stands."""
    found = {path.removesuffix("?"): optional(owner, path) for path in paths if path}
    return {path: module for path, module in found.items() if module is not None}


def parameter(owner: nn.Module, path: str | None) -> nn.Parameter | None:
    """The parameter at a path; None where there is none."""
    found = stands_at(owner, path)
    return found if isinstance(found, nn.Parameter) else None


def is_fused(attn: nn.Module, switch: str | None) -> bool:
    """Whether a host's attention takes a fused kernel, by the attribute that says so."""
    found = stands_at(attn, switch)
    return found != "eager" if isinstance(found, str) else found is None or bool(found)


def linear(module: nn.Module, path: str) -> nn.Linear | nn.Conv2d:
    """A linear layer or 1 × 1 convolution; UserError for other kinds, say, quantised."""
    found = stands_at(module, path)
    if isinstance(found, nn.Linear) or (
        isinstance(found, nn.Conv2d) and found.kernel_size == (1, 1)
    ):
        return found
    raise UserError(
        f"'{path}' of a {type(module).__name__} is a {type(found).__name__}, not a Linear; "
        "prune before quantising, adapting or otherwise wrapping the layers."
    )


@cache
def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.removesuffix("?").split("."))
