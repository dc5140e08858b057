"""What a saved model tells of places on its maker's machine: the name of a folder, not its path."""

import shlex
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

COMMAND = "command"
"""The key of a command line, in whose words there may be paths."""


def names_of_places(value: Mapping[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """The same data with names in the place of absolute paths, which `known` then has by path."""

    def named(key: str, item: Any) -> Any:
        if isinstance(item, Mapping):
            return {name: named(name, inner) for name, inner in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(named(key, inner) for inner in item)
        if isinstance(item, PurePath):
            item = str(item)
        if not isinstance(item, str):
            return item
        if key != COMMAND:
            return _name(item, known)
        try:
            words = shlex.split(item)
        except ValueError:
            return item
        found = [_word(word, known) for word in words]
        return item if found == words else shlex.join(found)

    return {key: named(key, item) for key, item in value.items()}


def without_places(text: str | bytes, known: Mapping[str, str]) -> str | bytes:
    """A text with names in the place of the paths that are `known`, the longest first."""
    if isinstance(text, bytes):
        return text
    for path in sorted(known, key=len, reverse=True):
        text = text.replace(path, known[path])
    return text


def _word(word: str, known: dict[str, str]) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag}={_name(value, known)}" if equals else _name(word, known)


def _name(text: str, known: dict[str, str]) -> str:
    """The last name of an absolute path, or of one in a home directory; any other text as it is."""
    if "\n" in text or len(text) < 3:
        return text
    windows = PureWindowsPath(text)
    if text.startswith(("/", "~/")):
        name = PurePath(text).name
    elif windows.drive and windows.root:
        name = windows.name
    else:
        return text
    known[text] = name or text
    return known[text]
