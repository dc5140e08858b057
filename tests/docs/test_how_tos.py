"""The code that the how-tos show runs and does what they say."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.presets import Preset, parse_preset

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHECK = """
import json, sys
import torch
import secateur
from secateur.criteria import criteria
from secateur.verbs.load import open_data

model = secateur.load("digits_vit")
batches, _ = open_data(model, "digits/train", limit=48)
images = torch.cat([batch.images_BCHW for batch in batches])
seen = {}
def keep(name):
    return lambda module, inputs: seen.__setitem__(name, inputs[0].double().square().mean((0, 1)))
hooks = [block.mlp.fc2.register_forward_pre_hook(keep(f"blocks.{i}.mlp"))
         for i, block in enumerate(model.blocks)]
with torch.no_grad():
    model(images)
for hook in hooks:
    hook.remove()
result = secateur.prune(model, images, "50% hidden", preset=sys.argv[1], repair="none")
kept, best = {}, {}
for i, block in enumerate(model.blocks):
    name = f"blocks.{i}.mlp"
    units = sorted(result.plan.units[name]["hidden"])
    score = seen[name] * block.mlp.fc2.weight.double().square().sum(0)
    kept[name], best[name] = units, sorted(score.argsort(descending=True)[: len(units)].tolist())
print(json.dumps({"kept": kept, "best": best, "source": criteria.get("output_energy").source}))
"""


def block(page: str, language: str, number: int = 0) -> str:
    """A block of code of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def test_the_criterion_shown_keeps_the_units_it_says(tmp_path: Path) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (tmp_path / "mine.py").write_text(block("how_to_criterion.md", "python"), encoding="utf-8")
    shown = re.findall(r'entry-points\."(.*?)"', block("how_to_criterion.md", "toml"))
    (info / "entry_points.txt").write_text(f"[{shown[0]}]\noutput_energy = mine\n")
    preset = tmp_path / "output_energy.yaml"
    preset.write_text(block("how_to_criterion.md", "yaml"), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", CHECK, str(preset)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["kept"] == found["best"] and all(found["kept"].values())
    assert "this page" in found["source"]


def test_the_preset_shown_is_valid_and_no_field_is_left_out() -> None:
    assert parse_preset("mine", block("how_to_preset.md", "yaml")).groups == ("hidden", "vo")
    text = (DOCS / "how_to_preset.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == set(Preset.model_fields) - {"name"}


def test_places_in_the_glossary_exist() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    places = re.findall(r"\| `([\w/]+\.py)` \|$", text, re.MULTILINE)
    source = DOCS.parent / "src" / "secateur"
    assert len(places) > 40
    assert [place for place in places if not (source / place).is_file()] == []


def imports(text: str) -> list[str]:
    """Dotted names that the Python code of a page, or its commands, import from secateur."""
    found = re.findall(r"from (secateur[\w.]*) import (\w+(?:, \w+)*)", text)
    return [f"{module}.{name}" for module, names in found for name in names.split(", ")]


def exists(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one."""
    try:
        return bool(importlib.import_module(name))
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return (
            bool(module) and exists(module) and hasattr(importlib.import_module(module), attribute)
        )


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name
)
def test_what_pages_import_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`(secateur(?:\.\w+)+)`", text)
    assert [name for name in [*imports(text), *quoted] if not exists(name)] == []


def test_an_import_of_a_moved_name_is_noticed() -> None:
    assert imports("from secateur.presets import Preset, nothing") == [
        "secateur.presets.Preset", "secateur.presets.nothing",
    ]  # fmt: skip
    assert exists("secateur.presets.Preset") and not exists("secateur.presets.nothing")
    assert exists("secateur.presets") and not exists("secateur.no_such_room.Preset")
