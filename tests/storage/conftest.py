"""A small saved model, made once, for the tests that damage copies of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.data.preprocessing import Preprocessing
from secateur.storage.base import Base
from secateur.storage.save import save
from secateur.storage.spec import checksum_of
from tests.storage.tiny import SIZES, host, shrink_


@pytest.fixture(scope="session")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "small"
    dense = host("vit")
    # WHY: timm below 1.0.31 keeps no arguments by which a model is told by its name.
    base = Base(
        library="timm",
        name="vit_tiny_patch16_224",
        arguments=dict(SIZES),
        preprocessing=Preprocessing.of(dense),
    )
    save(shrink_(dense), folder, base=base, provenance={"preset": "spectral"}, results={})
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved_once, tmp_path / "small"))


@pytest.fixture
def edit(saved: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Change spec.json of `saved` by a function of its contents, and its checksum with it."""

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        path = saved / "spec.json"
        spec = json.loads(path.read_text())
        change(spec)
        spec["checksum"] = checksum_of(spec)
        path.write_text(json.dumps(spec))

    return edit
