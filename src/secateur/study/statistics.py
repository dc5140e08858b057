"""Paired statistics over evaluation images and calibration draws.

Legend: S calibration draws (seeds), N evaluation images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    chance = np.random.default_rng(seed)
    weights = chance.multinomial(images, np.full(images, 1 / images), RESAMPLES) / images
    by_draw = weights @ values_SN.T
    if draws > 1:
        of_draws = chance.multinomial(draws, np.full(draws, 1 / draws), RESAMPLES) / draws
        means = (by_draw * of_draws).sum(1)
    else:
        means = by_draw[:, 0]
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [edge, 100 - edge])
    return Interval(mean=float(values_SN.mean()), low=float(low), high=float(high))


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
