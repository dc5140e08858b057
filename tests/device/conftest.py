"""Every test of this folder runs on the stand-in, and once more on an accelerator (`-m gpu`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.standin_device import NAME, install

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: the stand-in changes torch for the rest of the process."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.standin)


def accelerator() -> torch.device | None:
    """The real accelerator of this machine."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None or found.type == NAME else torch.device(found.type, 0)


@pytest.fixture(params=["standin", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The stand-in, or the accelerator of this machine."""
    real = accelerator()
    if request.param == "accelerator":
        if real is None:
            pytest.skip("needs an accelerator, and this machine has none")
        return real
    if real is not None:
        pytest.skip(f"torch takes one kind of accelerator, and this machine has {real.type}")
    return install()


@pytest.fixture(autouse=True)
def same_attention() -> Iterator[None]:
    """The CPU computes attention as the stand-in does, so that both agree to the last bits."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
