"""What is printed: singulars, reasons, and characters that the terminal has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.allocation.budget import parse_budget
from secateur.errors import UserError
from secateur.training.settings import TrainSettings, read_settings


@pytest.mark.parametrize(
    ("budget", "instead"),
    [
        ("5 GFLOPs", "'5 GMACs', or half of it"),
        ("50% flops", "'50% macs'"),
        ("3 MFLOP", "'3 MMACs'"),
    ],
)
def test_flops_are_refused_with_the_reason(budget: str, instead: str) -> None:
    with pytest.raises(UserError, match="twice as many") as caught:
        parse_budget(budget)
    assert instead in str(caught.value)


def test_no_in_yaml_is_a_precision(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("precision: no\n")
    assert read_settings(TrainSettings, tmp_path / "run.yaml").precision == "no"
    (tmp_path / "run.yaml").write_text("precision: yes\n")
    with pytest.raises(UserError, match="'no' or 'bf16'"):
        read_settings(TrainSettings, tmp_path / "run.yaml")


def test_one_epoch_is_no_epochs() -> None:
    lengths = [TrainSettings(epochs=1), TrainSettings(epochs=2), TrainSettings(steps=1)]
    assert [each.length(100).text for each in lengths] == ["1 epoch", "2 epochs", "1 step"]


def test_terminals_without_unicode() -> None:
    plain = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "COLUMNS": "60"}
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "inspect", "digits_vit"],
        capture_output=True,
        env=os.environ | plain,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "parameters" in text and "?" not in text
    assert max(map(len, text.splitlines())) <= 60
