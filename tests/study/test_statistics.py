"""Statistics against values by hand and known properties."""

import numpy as np
import pytest

from secateur.study.statistics import bootstrap, holm, signed_rank, spearman


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 -> held at 0.06, 0.5.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_bootstrap_interval_is_that_of_the_mean() -> None:
    chance = np.random.default_rng(0)
    values = chance.normal(3, 2, (1, 4000))
    found = bootstrap(values)
    error = 1.96 * 2 / np.sqrt(4000)
    assert found.mean == pytest.approx(float(values.mean()))
    assert found.high - found.mean == pytest.approx(error, rel=0.1)
    assert found.mean - found.low == pytest.approx(error, rel=0.1)
    assert bootstrap(values) == found


def test_draws_that_differ_widen_the_interval() -> None:
    values = np.zeros((3, 500)) + np.array([[0.0], [1.0], [2.0]])
    found = bootstrap(values)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 0.0, 2.0))
    same = bootstrap(np.ones((3, 500)))
    assert (same.mean, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))


def test_signed_rank_sees_a_shift_and_nothing_in_nothing() -> None:
    chance = np.random.default_rng(0)
    noise = chance.normal(0, 1, 200)
    assert signed_rank(np.zeros(20)) == 1.0
    assert signed_rank(noise + 1) < 1e-6
    assert signed_rank(noise - noise.mean()) > 0.05


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1, 2], [1, 2]) is None
