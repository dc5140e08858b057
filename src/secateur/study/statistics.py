"""Paired statistics over evaluation images and calibration draws.

Legend: S calibration draws (seeds), N evaluation images, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap(values_SN: Array, *, seed: int = 0) -> Interval:
    """Mean of all values and its 95 % percentile interval.

    Draws and images are resampled with replacement, independently of each other (two-way
    bootstrap), since both are samples of what might have been. The values of two methods on the
    same draws and images, subtracted beforehand, give a paired interval.
    """
    draws, images = values_SN.shape
    by_draw_RS = _resampled(images, seed) @ values_SN.T
    means_R = (by_draw_RS * _resampled(draws, seed + 1)).sum(1)
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means_R, [edge, 100 - edge])
    return Interval(mean=float(values_SN.mean()), low=float(low), high=float(high))


@lru_cache(maxsize=8)
def _resampled(count: int, seed: int) -> Array:
    """Weights (RESAMPLES, count) of so many things drawn with replacement."""
    chance = np.random.default_rng(seed)
    return chance.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count


def signed_rank(differences_N: Array) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; 1 where nothing differs."""
    if not np.any(differences_N):
        return 1.0
    return float(stats.wilcoxon(differences_N, zero_method="zsplit").pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the order given."""
    order = np.argsort(values)
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; None where one side is constant or there are fewer than three."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(stats.spearmanr(a, b).statistic)
