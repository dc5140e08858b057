"""Candidates from few measurements: through the points, monotone, proportional near the end."""

import pytest

from secateur.allocation.curves import candidates_from_probes

SIZES = (8, 16, 24, 32)


def test_passes_through_the_measured_sizes_and_is_monotone() -> None:
    entry = candidates_from_probes("b", "qk", SIZES, [9.0, 3.0, 1.0, 0.0], {8: 0.8, 24: 0.05})
    assert entry.loss(8) == pytest.approx(0.8)
    assert entry.loss(24) == pytest.approx(0.05)
    assert entry.loss(32) == 0.0
    assert 0.05 < entry.loss(16) < 0.8


def test_below_the_smallest_measured_error_damage_is_proportional() -> None:
    entry = candidates_from_probes("b", "qk", SIZES, [8.0, 4.0, 1.0, 0.0], {16: 0.4})
    assert entry.loss(24) == pytest.approx(0.1)


def test_free_sizes_cost_nothing() -> None:
    entry = candidates_from_probes("b", "vo", SIZES, [2.0, 0.0, 0.0, 0.0], {8: 0.5})
    assert entry.loss(16) < 1e-9


def test_a_noisy_measurement_cannot_make_a_smaller_size_look_better() -> None:
    entry = candidates_from_probes("b", "qk", SIZES, [9.0, 3.0, 1.0, 0.0], {8: 0.1, 16: 0.3})
    assert entry.loss(8) >= entry.loss(16) >= entry.loss(24)
