"""Imports between rooms point only backwards, in the order in which data walks through them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import secateur.registry
from secateur.models.derived.names import names_in
from secateur.models.family import families

ROOT = Path(secateur.registry.__file__).parent
ORDER = [
    "errors",
    "registry",
    "textfiles",
    "tensorfiles",
    "whole",
    "locks",
    "devices",
    "progress",
    "request",
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
        ("from secateur.allocation.candidates import Menu", True),
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


SPEAKS_OF_HOSTS = ("models/families/", "storage/libraries/")
"""The only places that know a host library's classes and what these call their parts."""

HOST_MODULES = ("timm.models", "timm.layers", "torchvision.models", "transformers", "open_clip")

OUR_NAMES = frozenset(
    """
    attn mlp norm head gate scale proj qkv weight bias num_heads q_norm k_norm attn_drop proj_drop
    fused_attn num_classes num_features gamma blocks stages stem embed model encoder layers layer
    q k v 0 1 2 3 Sequential attention classifier dense dropout drop_path heads class_token backbone
    """.split()  # noqa: SIM905
)
"""Names in statements that are also plain words, torch's, or those of our own modules."""

KNOWS_HOSTS = {
    "data/preprocessing.py": {"patch_embed"},
    "models/checks/draft.py": {"in_proj_weight", "out_proj", "num_attention_heads", "scaling"},
    "zoo": {"VisionTransformer", "embed_dim"},
}
"""Places outside these that still do: the size of a model's images, names that a draft looks for in
unknown models, and the demo's own model."""


def host_names() -> frozenset[str]:
    """What the registered statements call modules, parameters, attributes and classes."""
    found: set[str] = set()
    for _, family in families.items():
        stated = getattr(family, "statement", None)
        if stated is None:
            continue
        found |= {host.rpartition(":")[2] for host in stated.hosts} | {*stated.residuals}
        found |= {*stated.sizes, *stated.caches, stated.flatten or ""}
        steps = [step for steps in stated.residuals.values() for step in steps]
        layers = [layer for step in steps for layer in step.layers]
        paths = [path for f in (stated.stem, stated.tail, *steps, *layers) for path in names_in(f)]
        for path in [*paths, *(step.path for step in steps)]:
            found |= set(path.removesuffix("?").split("."))
        found |= {name for layer in layers for name in layer.classes}
    return frozenset(found - OUR_NAMES - {""})


def spoken(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names of attributes, parts of strings that are paths, and classes of host modules."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "torch", "F")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose:
                yield from ((node.lineno, part) for part in node.value.split("."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(HOST_MODULES):
            yield from ((node.lineno, a.name) for a in node.names if not a.name.islower())


def host_talk(source: str, names: frozenset[str]) -> list[str]:
    """Sentences about host names that a source file speaks, and host classes that it imports."""
    tree = ast.parse(source)
    imported_classes = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(HOST_MODULES)
        for alias in node.names
        if alias.name != alias.name.lower()
    }
    known = names | imported_classes
    return sorted({f"line {line}: '{name}'" for line, name in spoken(tree) if name in known})


def allowed_names(path: str) -> set[str]:
    """Host names that a file may still speak."""
    return {n for place, names in KNOWS_HOSTS.items() if path.startswith(place) for n in names}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_room_speaks_of_hosts(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    if where.startswith(SPEAKS_OF_HOSTS):
        return
    names = host_names() - allowed_names(where)
    found = host_talk(path.read_text(encoding="utf-8"), names)
    assert [talk for talk in found if talk.split("'")[1] not in allowed_names(where)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from timm.layers import RmsNorm\nNORMS = (RmsNorm,)", True),
        ("from timm.models.vision_transformer import VisionTransformer", True),
        ("from timm.layers import drop_path", False),
        ("x = model.patch_embed", True),
        ("x = getattr(block, 'token_mixer')", True),
        ("x = model.get_submodule(f'{block}.norm1')", True),
        ("from timm.data import Mixup", False),
        ('"""The patch_embed of timm."""', False),
    ],
)
def test_the_check_hears_every_way_to_name_a_host(source: str, found: bool) -> None:
    assert bool(host_talk(source, host_names())) is found


MOST_FILES, MOST_LINES = 16, 300

LONG_FILES: dict[str, int] = {}
"""Files with more lines than that, and how many: none may grow."""


def test_rooms_stay_small() -> None:
    """Sub-packages are rooms of their own; packages of plug-ins may grow."""
    sources = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")]
    registry = re.compile(r'Registry\([^)]*"secateur\.([\w.]+)"')
    plugins = {p.replace(".", "/") for text in sources for p in registry.findall(text)}
    assert "criteria/scores" in plugins
    for folder in [ROOT, *(p for p in ROOT.rglob("*") if p.is_dir())]:
        name = folder.relative_to(ROOT).as_posix()
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if name not in plugins:
            assert len(files) <= MOST_FILES, name


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= max(MOST_LINES, LONG_FILES.get(where, 0))


def test_no_module_imports_itself_through_others() -> None:
    """Circles count imports at the top of files; those for types only, or in functions, do not."""
    graph: dict[str, set[str]] = {}
    sources = {
        ".".join(["secateur", *path.relative_to(ROOT).with_suffix("").parts]): path
        for path in ROOT.rglob("*.py")
    }
    for module, path in sources.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        tops = ast.Module(body=[*imports], type_ignores=[])
        names = {name for _, name in imported(tops, module.rpartition(".")[0])}
        names |= {
            f"{node.module}.{alias.name}"
            for node in tops.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        graph[module] = {name for name in names if name in sources and name != module}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
