"""Settings from YAML: defaults, changes, and sentences about what is wrong."""

from pathlib import Path

import pytest

from secateur.errors import UserError
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from secateur.training.settings import TrainSettings, read_settings


def written(folder: Path, text: str) -> Path:
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


def test_a_file_and_changes(tmp_path: Path) -> None:
    file = written(tmp_path, "epochs: 3\noptimizer: {learning_rate: 0.002, clip: null}\n")
    found = read_settings(HealSettings, file, {"steps": 20, "optimizer.weight_decay": 0.1})
    assert (found.steps, found.epochs) == (20, None)
    assert found.optimizer.model_dump() == {
        "name": "adamw",
        "learning_rate": 0.002,
        "weight_decay": 0.1,
        "layer_decay": None,
        "clip": None,
    }
    assert read_settings(HealSettings, file, {"time": None}).epochs == 3


def test_budgets_become_steps() -> None:
    assert TrainSettings(epochs=2, batch_size=64).length(100).steps == 4
    assert TrainSettings(batch_size=50).length(100).steps == 20
    assert TrainSettings(time="2min").length(100).seconds == 120


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimiser: {}", "unknown key 'optimiser'; did you mean 'optimizer.name'"),
        ("optimizer: {learning_rte: 1}", "did you mean 'optimizer.learning_rate'"),
        ("distil: {temprature: 2}", "did you mean 'distil.temperature'"),
        ("optimizer: {learning_rate: -1}", "'optimizer.learning_rate': input should be greater"),
        ("steps: 5\nepochs: 2", "steps and epochs are given; give one of them"),
        ("time: soon", "time 'soon' is neither a time"),
        ("precision: fp8", "'precision': input should be 'no' or 'bf16'"),
        ("- 1", "holds no names with values"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read_settings(HealSettings, written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_settings(FineTuneSettings, tmp_path / "none.yaml")
