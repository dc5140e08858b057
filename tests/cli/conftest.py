"""The program as a user meets it: arguments in, exit code and two streams out."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from secateur.cli import app
from secateur.data.batches import Batches
from secateur.data.digits import load_digits_split
from secateur.zoo import zoo_path


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails when anything else is there."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program in this process."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Ended:
        found = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Ended(found.exit_code, found.stdout, found.stderr)

    return run


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a pass over images begins."""

    def begin(_: Batches) -> None:
        raise AssertionError("a pass over the images began")

    monkeypatch.setattr(Batches, "__iter__", begin)


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """Three images of each digit in folders 0 to 9."""
    root = tmp_path / "digits"
    images, labels = load_digits_split("test")
    for digit in range(10):
        (root / str(digit)).mkdir(parents=True)
        for number, image in enumerate(images[labels == digit][:3]):
            Image.fromarray(image).save(root / str(digit) / f"{number}.png")
    return root


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], object]], Path]:
    """Write the weights of the bundled model, changed by a function, to a file."""

    def write(change: Callable[[dict[str, Tensor]], object]) -> Path:
        tensors = load_file(zoo_path("digits_vit.safetensors"))
        change(tensors)
        save_file(tensors, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return write


@pytest.fixture(scope="session")
def pruned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model at a quarter of its neurons, saved by the program. Not to be changed."""
    out = tmp_path_factory.mktemp("pruned") / "small"
    arguments = ["prune", "digits_vit", "--data", "digits/train", "--limit", "64", "--out", out]
    arguments += ["--budget", "25% hidden", "--mean", "0.45", "--no-latency", "--preset", "energy"]
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.stderr
    return out
