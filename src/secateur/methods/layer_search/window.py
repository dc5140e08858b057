"""Drop one run of blocks, that whose ends are most alike."""

from collections.abc import Callable

from secateur.allocation.quota import Quota, Unit
from secateur.methods.layer_search.drops import Found, open_units
from secateur.models.types import Anatomy
from secateur.statistics import Statistics


def best_window(
    anatomy: Anatomy, statistics: Statistics, criterion: str, units: list[Unit], quota: Quota
) -> Found:
    """The run of blocks whose ends are most alike, as short as the quota allows (UIDL).

    Of every length the window with the least distance is tried; the distance of n blocks is that
    of the streams before the first and behind the n-th.
    """
    blocks = [block.id for block in anatomy.blocks if block.branches]
    by_id = {unit.key[0]: unit for unit in units}
    for length in range(len(blocks) + 1):
        windows = [
            [by_id[name] for name in blocks[i : i + length]]
            for i in range(len(blocks) - length + 1)
            if all(name in by_id for name in blocks[i : i + length])
        ]
        fitting = [window for window in windows if quota.met(window)]
        if fitting:
            distance = _distances(statistics, criterion, length)
            best = min(fitting, key=lambda window: distance(window))
            return Found(units=tuple(best), degradations=(distance(best),) * len(best))
    return Found(units=tuple(open_units(units, units, quota)), degradations=())


def _distances(
    statistics: Statistics, criterion: str, length: int
) -> Callable[[list[Unit]], float]:
    def distance(window: list[Unit]) -> float:
        if not window:
            return 0.0
        sums = statistics.of("window_similarity", window[0].key[0])
        mean = float(sums[criterion][length - 1] / sums["count"])
        return 1 - mean if criterion == "cosine" else mean

    return distance
