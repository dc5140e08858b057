"""A grid on the bundled digits model that takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SMALL: dict[str, Any] = {
    "title": "A small grid",
    "models": {"digits": "digits_vit"},
    "calibration": {"data": "digits/train", "limit": 24},
    "evaluation": {"data": "digits/test", "limit": 40},
    "structures": ["attention", "hidden"],
    "scores": ["random", "magnitude", "delta_kl", "energy"],
    "budgets": ["90% macs", "70% macs"],
    "repair": ["none", "least_squares"],
    "seeds": [0, 1],
    "latency": None,
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a study like the small one, with changes, and give its path."""

    def file(name: str = "study.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False), encoding="utf-8")
        return path

    return file
