"""Of several processes that a launcher started, one writes and prints."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_only_the_first_process_writes_and_prints(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = ["prune", "digits_vit", "--data", "digits/train", "--limit", 32, "--no-latency"]
    prune += ["--preset", "energy", "--budget", "50% hidden", "--out", tmp_path / "small", "--json"]
    monkeypatch.setenv("RANK", "1")
    second = run(*prune)
    assert (second.code, second.out) == (0, "")
    assert not (tmp_path / "small").exists()
    monkeypatch.setenv("RANK", "0")
    assert run(*prune).json["out"] == str(tmp_path / "small")
    assert (tmp_path / "small" / "spec.json").is_file()
