"""A new family, criterion, kind of statistics or preset is one new file and no other edit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import secateur.registry
from secateur.errors import UserError
from secateur.registry import Registry

PACKAGE = Path(secateur.registry.__file__).parent
FILES = Path(__file__).parent / "extensions"
PLANTED = {
    "toy_family.py": "models/families/toy_family.py",
    "peaks.py": "statistics/kinds/peaks.py",
    "peak.py": "criteria/scores/peak.py",
    "peak.yaml": "presets/peak.yaml",
}


def install_plugin(folder: Path, name: str, group: str) -> None:
    """Make a module in `folder` look like an installed distribution with one entry point."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nanything = {name}\n")


def test_one_file_each_is_enough(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "secateur")
    for source, target in PLANTED.items():
        shutil.copyfile(FILES / source, tmp_path / "secateur" / target)
    shutil.copyfile(FILES / "plugin.py", tmp_path / "plugin.py")
    install_plugin(tmp_path, "plugin", "secateur.criteria.scores")
    run = subprocess.run(
        [sys.executable, FILES / "prune_toy.py"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert Path(found["package"]).is_relative_to(tmp_path)
    assert "peak" in found["presets"]
    assert {"peak", "upside_down"} <= set(found["criteria"])
    assert found["removed"] == found["smallest"] and len(found["removed"]) > 0
    assert found["pruned"] <= 0.7 * found["dense"]
    assert found["params"] == found["counted"]
    assert found["repair"] == "mean"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    """A registry over a package of its own with two modules."""
    package = tmp_path / "bench_of_tools"
    package.mkdir()
    (package / "__init__.py").write_text("from secateur.registry import Registry\n")
    (package / "saws.py").write_text("import bench\nbench.tools.register('saw')(1)\n")
    (package / "shears.py").write_text("import bench\nbench.tools.register('shears')(2)\n")
    (tmp_path / "bench.py").write_text(
        "from secateur.registry import Registry\ntools = Registry('tool', 'bench_of_tools')\n"
    )
    (tmp_path / "lopper.py").write_text("import bench\nbench.tools.register('lopper')(3)\n")
    install_plugin(tmp_path, "lopper", "bench_of_tools")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("bench", "bench_of_tools", "bench_of_tools.saws", "bench_of_tools.shears"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delitem(sys.modules, "lopper", raising=False)
    import bench

    tools: Registry[int] = bench.tools
    return tools


def test_modules_and_entry_points_are_found_at_the_first_look(room: Registry[int]) -> None:
    assert "bench_of_tools.saws" not in sys.modules
    assert room.names() == ["lopper", "saw", "shears"]
    assert dict(room.items()) == {"lopper": 3, "saw": 1, "shears": 2}
    assert room.get("saw") == 1


def test_unknown_names_are_refused_with_a_suggestion(room: Registry[int]) -> None:
    with pytest.raises(UserError, match="unknown tool 'shear'; did you mean 'shears'"):
        room.get("shear")
    with pytest.raises(UserError, match=r"unknown tool 'axe'; Known: lopper, saw, shears\."):
        room.get("axe")


def test_no_extension_shadows_another(room: Registry[int]) -> None:
    with pytest.raises(ValueError, match="tool 'saw' is registered twice"):
        room.names(), room.register("saw")(9)
    assert room.get("saw") == 1


def test_an_extension_that_fails_is_not_passed_over(room: Registry[int], tmp_path: Path) -> None:
    (tmp_path / "bench_of_tools" / "axe.py").write_text("import no_such_module\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            room.get("lopper")


def test_the_how_to_shows_the_whole_family() -> None:
    page = (Path(__file__).parent.parent / "docs" / "how_to_family.md").read_text(encoding="utf-8")
    file = (FILES / "toy_family.py").read_text(encoding="utf-8")
    assert f"```python\n{file}```" in page
    assert len(file.splitlines()) < 60
