"""The picture of the rooms shows the imports as they are."""

from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "docs" / "scripts"


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that draws the picture."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import architecture_picture

    return architecture_picture


def test_the_picture_shows_the_imports(drawing: ModuleType) -> None:
    shown = drawing.drawn(drawing.PICTURE.read_text(encoding="utf-8"))
    assert shown == drawing.edges(), "run: python docs/scripts/architecture_picture.py"


def test_the_picture_shows_the_rooms_in_order(drawing: ModuleType) -> None:
    text = drawing.PICTURE.read_text(encoding="utf-8")
    rows = [text.find(f'font-size="13" font-weight="400">{room}<') for room in drawing.order()]
    assert -1 not in rows and rows == sorted(rows)


def test_the_run_follows_imports(drawing: ModuleType) -> None:
    found = drawing.edges()
    called = {(step.caller, step.room) for step in drawing.RUN if step.caller}
    assert called <= found


def test_a_new_import_is_noticed(drawing: ModuleType) -> None:
    text = drawing.picture()
    assert drawing.drawn(text) == drawing.edges()
    assert drawing.drawn(text.replace('data-edge="cli verbs"', "")) == drawing.edges() - {
        ("cli", "verbs")
    }
