"""Imports between rooms point only backwards, in the order in which data walks through them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur.registry

ROOT = Path(secateur.registry.__file__).parent
ORDER = [
    "errors",
    "registry",
    "textfiles",
    "tensorfiles",
    "whole",
    "progress",
    "data",
    "zoo",
    "models",
    "statistics",
    "criteria",
    "allocation",
    "measurement",
    "surgery",
    "ablation",
    "training",
    "presets",
    "recipes",
    "methods",
    "masks",
    "analysis",
    "storage",
    "export",
    "report",
    "verbs",
    "study",
    "cli",
]
EXEMPT = {"__init__", "__main__"}
"""The two files of the package itself that may import from every room."""


def room(module: str) -> str | None:
    """The room of a dotted module name: "secateur.data.digits" → "data"; None outside secateur."""
    package, _, rest = module.partition(".")
    if package != "secateur":
        return None
    return rest.partition(".")[0] or "__init__"


def imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, also in functions and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parents = parts[: len(parts) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            if base == "secateur":
                yield from ((node.lineno, f"secateur.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, base


def violations(source: str, module: str, package: str) -> list[str]:
    """Sentences about imports of `module` that point forwards or to an unlisted room."""
    own = room(module)
    if own is None or own in EXEMPT:
        return []
    if own not in ORDER:
        return [f"{module}: room '{own}' is not in the order of rooms"]
    found = []
    for line, name in imported(ast.parse(source), package):
        other = room(name)
        if other is None or other == own:
            continue
        if other not in ORDER or ORDER.index(other) > ORDER.index(own):
            found.append(f"{module}:{line}: '{own}' may not import '{name}'")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_backwards(path: Path) -> None:
    parts = ["secateur", *path.relative_to(ROOT).with_suffix("").parts]
    package = ".".join(parts[:-1])
    module = package if parts[-1] == "__init__" and len(parts) > 2 else ".".join(parts)
    assert violations(path.read_text(encoding="utf-8"), module, package) == []


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("import torch", True),
        ("from secateur.errors import UserError", True),
        ("from secateur.allocation.menus import Menu", True),
        ("from . import repair", True),
        ("from .repair import solve", True),
        ("from ..models import types", True),
        ("from ..storage import spec", False),
        ("from .. import cli", False),
        ("from secateur import cli", False),
        ("import secateur.storage.spec", False),
        ("from secateur.basement import rats", False),
        ("from secateur import prune", False),
        ("def f():\n    from secateur.verbs import prune", False),
        ("if TYPE_CHECKING:\n    from secateur.training import Healer", False),
    ],
)
def test_the_rule_sees_every_form_of_import(source: str, allowed: bool) -> None:
    found = violations(source, "secateur.surgery.cut", "secateur.surgery")
    assert (found == []) is allowed


def test_every_room_must_be_listed() -> None:
    assert violations("", "secateur.basement.rats", "secateur.basement") != []
