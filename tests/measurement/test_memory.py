import pytest
import torch

from secateur.measurement.memory import peak_memory

MIB = 2**20


def test_memory_given_back_is_seen_all_the_same() -> None:
    def use_and_free() -> None:
        torch.ones(64 * MIB // 4)

    assert 60 * MIB < peak_memory(use_and_free) < 80 * MIB


def test_earlier_peaks_do_not_count() -> None:
    torch.ones(128 * MIB // 4)
    assert peak_memory(lambda: None) < 8 * MIB
    assert peak_memory(lambda: torch.ones(32 * MIB // 4)) > 28 * MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_accelerator() -> None:
    grown = peak_memory(lambda: torch.ones(64 * MIB // 4, device="cuda"), "cuda")
    assert 64 * MIB <= grown < 70 * MIB
