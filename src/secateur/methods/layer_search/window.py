"""Drop one run of blocks, that whose ends are most alike."""

from collections.abc import Callable

from secateur.allocation.quota import Quota, Unit
from secateur.errors import UserError
from secateur.methods.layer_search.drops import Found
from secateur.models.types import Anatomy
from secateur.statistics import Statistics


def best_window(
    anatomy: Anatomy, statistics: Statistics, criterion: str, units: list[Unit], quota: Quota
) -> Found:
    """The run of blocks whose ends are most alike, as short as the quota allows (UIDL).

    Of every length the window with the least distance is tried; the distance of n blocks is that
    of the streams before the first and behind the n-th. A window lies in one stage. UserError where
    no run is long enough.
    """
    blocks = [block for block in anatomy.blocks if block.branches]
    by_id = {unit.key[0]: unit for unit in units}
    for length in range(len(blocks) + 1):
        runs = [blocks[i : i + length] for i in range(len(blocks) - length + 1)]
        windows = [
            [by_id[block.id] for block in run]
            for run in runs
            if all(block.id in by_id for block in run)
            and len({anatomy.stage_of(block) for block in run}) <= 1
        ]
        fitting = [window for window in windows if quota.met(window)]
        if fitting:
            distance = _distances(statistics, criterion, length)
            best = min(fitting, key=lambda window: distance(window))
            return Found(units=tuple(best), degradations=(distance(best),) * len(best))
    raise UserError(
        "no run of neighbouring blocks of one stage that may be dropped is as long as the budget "
        "asks; drop fewer, protect fewer layers, or take a preset that drops single blocks, such "
        "as shortgpt."
    )


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
