"""YAML and JSON that people write or receive, read within bounds: sizes, depths, plain values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from secateur.errors import UserError, short

LARGEST = 256 * 2**10
"""In bytes; no file that a person writes for secateur comes near."""
MOST_NODES = 10_000
"""Keys and values of one file, those behind aliases counted wherever they are used."""
DEEPEST = 40
"""Lists and mappings within one another."""
LARGEST_NUMBER = 2**63

Place = tuple[str | int, ...]
T = TypeVar("T")

UNFIT = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Raised by parsers for values that are not of the type that they claim, as `!!int x`."""


class _Refused(yaml.YAMLError):
    """A text beyond the bounds, in words."""


class _Loader(yaml.SafeLoader):
    """Stops as soon as a text has too many nodes or too many of them within one another."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node with all below it."""
        self.depth += 1
        self.nodes += 1
        _bound(self.depth - 1, self.nodes)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_text(path: str | Path, what: str, largest: int = LARGEST) -> str:
    """The text of a regular file of at most `largest` bytes; UserError naming `what` it is."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{what} cannot be read: it is no regular file.")
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{what} is larger than {largest} bytes and was not read.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} cannot be read: it is no text in UTF-8.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or short(error)
        raise UserError(f"{what} cannot be read: {reason}.") from error


def parse_yaml(text: str, what: str) -> Any:
    """The value of one YAML (or JSON) document; UserError naming `what` it is.

    It consists of mappings with names as keys, each there once, lists, strings, finite or infinite
    numbers below 2**63, booleans and None. Aliases are followed as far as the result stays within
    MOST_NODES.
    """

    def value_of(loader: _Loader, node: yaml.Node | None) -> Any:
        value = None if node is None else loader.construct_document(node)
        if problem := _problem(value):
            raise _Refused(problem)
        return value

    return _with_tree(text, what, value_of)


def parse_mapping(text: str, what: str) -> dict[str, Any]:
    """The names and values of a YAML document; none for an empty one."""
    found = parse_yaml(text, what)
    if not isinstance(found, dict | None):
        raise UserError(f"{what} holds no names with values, such as 'steps: 200'.")
    return found or {}


def parse_fields(text: str, what: str) -> dict[str, Any]:
    """The names and values of a YAML document that may not be empty."""
    found = parse_yaml(text, what)
    if not isinstance(found, dict):
        raise UserError(f"{what} is not valid YAML: it holds no names with values.")
    return found


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text, which may be long; UserError naming `what` it is."""
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RepeatedName as error:
        raise UserError(f"{what} is not readable JSON: {error}.") from error
    except UNFIT as error:
        raise UserError(f"{what} is not readable JSON; the file is damaged.") from error
    if problem := _problem(value):
        raise UserError(f"{what} is not readable JSON: {problem}.")
    return value


class RepeatedName(ValueError):
    """A name that stands twice in one mapping, of which only the last would be seen."""

    def __init__(self, name: str) -> None:
        super().__init__(f"'{short(name)}' stands twice in one mapping; leave one of them out")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as an `object_pairs_hook`; RepeatedName where a name stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedName(next(name for name in names if names.count(name) > 1))
    return found


def lines_of(text: str, what: str) -> dict[Place, int]:
    """Line numbers of all keys and items of a YAML document."""
    return _with_tree(text, what, lambda loader, node: _lines(node))


def _with_tree(text: str, what: str, use: Callable[[_Loader, yaml.Node | None], T]) -> T:
    """What `use` makes of the nodes of a text, once they are known to be few."""
    if len(text) > LARGEST:
        raise UserError(f"{what} is larger than {LARGEST} bytes and was not read.")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _size(node, {}, 0)
            return use(loader, node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, *UNFIT) as error:
        raise UserError(f"{what} is not valid YAML: {_reason(error)}.") from error


def _bound(depth: int, nodes: int) -> None:
    if depth > DEEPEST:
        raise _Refused(f"lists and mappings lie more than {DEEPEST} deep within one another")
    if nodes > MOST_NODES:
        raise _Refused(f"it has more than {MOST_NODES} keys and values, those of aliases counted")


def _size(node: yaml.Node, known: dict[int, tuple[int, int] | None], depth: int) -> tuple[int, int]:
    """How many nodes a tree has once its aliases are followed, and how deep it is."""
    _bound(depth, 0)
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _Refused("an alias stands within what it names")
        return found
    known[id(node)] = None
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated([key for key, _ in inner if isinstance(key, yaml.ScalarNode)])
        inner = [part for pair in inner for part in pair]
    nodes, deepest = 1, 0
    for part in inner:
        size, height = _size(part, known, depth + 1)
        nodes, deepest = nodes + size, max(deepest, height + 1)
    _bound(deepest, nodes)
    known[id(node)] = nodes, deepest
    return nodes, deepest


def _refuse_repeated(keys: list[yaml.ScalarNode]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key.value in seen:
            problem = str(RepeatedName(key.value))
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        seen.add(key.value)


def _reason(error: Exception) -> str:
    """Why a text is refused, with its line where the parser knows it."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        return where + short(error.problem or error.context or "it cannot be parsed")
    if isinstance(error, yaml.YAMLError):
        return short(error).rstrip(".")
    return f"a value is not of the type that it is written as ({short(error) or 'none'})"


def _problem(value: Any, depth: int = 0) -> str | None:
    """The first thing in a value that plain data does not hold, in words."""
    if depth > DEEPEST:
        return f"lists and mappings lie more than {DEEPEST} deep within one another"
    if isinstance(value, str):
        return None if _encodes(value) else f"'{short(value)}' is no text in UTF-8"
    if value is None or isinstance(value, bool | float):
        return None
    if isinstance(value, int):
        return None if abs(value) < LARGEST_NUMBER else "a whole number has more than 63 bits"
    if isinstance(value, list):
        return next((p for item in value if (p := _problem(item, depth + 1))), None)
    if not isinstance(value, dict):
        return f"'{short(value)}' is a {type(value).__name__}; write it in quotes"
    for key, item in value.items():
        if not isinstance(key, str):
            return f"the key '{short(key)}' is no name; write it in quotes"
        if problem := _problem(key, depth + 1) or _problem(item, depth + 1):
            return problem
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _lines(node: yaml.Node | None, place: Place = ()) -> dict[Place, int]:
    found: dict[Place, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            inner = (*place, key.value)
            found |= {inner: key.start_mark.line + 1} | _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            found |= {(*place, number): value.start_mark.line + 1}
            found |= _lines(value, (*place, number))
    return found
