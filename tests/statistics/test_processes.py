"""Two processes that share a pass find what one finds."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.statistics import observe, statistics_kinds
from secateur.statistics.processes import Processes, here
from tests.hosts import build, images_for

PROJECT = Path(__file__).resolve().parents[2]


def together(out: Path, images: int, batch: int, processes: int = 2) -> list[dict[str, Any]]:
    """What each of several processes, joined over gloo, found."""
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path]), "OMP_NUM_THREADS": 1}
    runs = []
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, "CUDA_VISIBLE_DEVICES": "", **common}
        command = [sys.executable, "-m", "tests.statistics.observed_together", out, images, batch]
        runs.append(
            subprocess.Popen(
                [str(word) for word in command],
                env=os.environ | {key: str(value) for key, value in own.items()},
                cwd=PROJECT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for run in runs:
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    return [torch.load(out / f"{rank}.pt") for rank in range(processes)]


def assert_alike(one: Any, other: Any) -> None:
    """Nested sums, equal to 1e-5 of the largest value of each."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_alike(value, other[key])
            continue
        assert value.dtype == other[key].dtype and value.shape == other[key].shape, key
        scale = float(value.abs().max())
        assert torch.allclose(value, other[key], rtol=1e-5, atol=1e-5 * scale), key


@pytest.mark.parametrize(("images", "batch", "share"), [(13, 2, 4), (3, 4, 1)])
def test_two_processes_find_what_one_finds(
    tmp_path: Path, images: int, batch: int, share: int
) -> None:
    """Seven batches over two processes; and one batch, so that one process has nothing to do."""
    first, second = together(tmp_path, images, batch)
    model = build("vit")
    data = (images_for(model, images), torch.arange(images) % 10)
    alone = observe(model, as_batches(data, batch), statistics_kinds.names())
    drawn = observe(model, as_batches(data, batch), ["sensitivity"], sample_labels=3)
    assert first["images"] == second["images"] == alone.images == images
    for found in (first, second):
        assert_alike(alone.sums, found["sums"])
        assert_alike(drawn.sums, found["drawn"])
    assert len(first["seen"]) == share
    assert max(first["seen"]) <= images


def test_a_process_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert here() == Processes(rank=0, count=1)


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"accelerate.*pip install accelerate"):
        here()
