"""Named extensions: one file and one decorator each, found without a list to edit."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from secateur.errors import UserError, short

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to extensions of one sort, such as criteria or model families.

    Every module of `package` is imported at the first look-up, and so are the entry points of
    the group named like the package, so that a new extension is one new file or one installed
    distribution.
    """

    def __init__(self, sort: str, package: str) -> None:
        self.sort = sort
        self.package = package
        self._items: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`.

        Raises ValueError when the name is taken: two extensions may not silently shadow.
        """

        def file(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.sort} '{name}' is registered twice")
            self._items[name] = item
            return item

        return file

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.package):
            point.load()
        self._discovered = True

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._discover()
        return sorted(self._items)

    def items(self) -> Iterator[tuple[str, T]]:
        """All (name, extension) pairs, sorted by name."""
        self._discover()
        return iter(sorted(self._items.items()))

    def get(self, name: str) -> T:
        """Return the extension called `name`; raise UserError with suggestions if unknown."""
        self._discover()
        if name in self._items:
            return self._items[name]
        raise UserError(unknown(self.sort, name, self.names()))


def unknown(sort: str, name: str, known: list[str]) -> str:
    """The sentence for an unknown name: what it was, what may have been meant, what exists."""
    close = get_close_matches(short(name), known, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {sort} '{short(name)}'; {hint}Known: {', '.join(known)}."
