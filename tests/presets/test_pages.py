"""Every preset that ships has a page that shows it as it is."""

import re
from pathlib import Path

import pytest

from secateur.presets import load_preset, parse_preset, preset_names

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"


def shown(name: str) -> str:
    """The YAML block of a page."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


@pytest.mark.parametrize("name", [n for n in preset_names() if load_preset(n).method == "criteria"])
def test_a_page_shows_the_preset_and_how_to_run_it(name: str) -> None:
    assert parse_preset(name, shown(name)) == load_preset(name)
    assert f"--preset {name} " in (PAGES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", preset_names())
def test_the_index_links_to_it(name: str) -> None:
    assert f"]({name}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")
