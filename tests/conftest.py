"""What every test gets: fixed seeds, one thread per worker, real data where there is any."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real weights and images beside the project; the test is skipped without it."""
    shared = PROJECT.parent / "shared"
    if not shared.is_dir():
        pytest.skip("needs real weights and images in ../shared, which is absent")
    return shared
