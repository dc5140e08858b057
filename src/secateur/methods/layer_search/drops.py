"""The layers that a search drops, and the cost that each would save."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.allocation.quota import Quota, Unit, dropped_sizes
from secateur.errors import UserError

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Units to drop, in the order in which they were chosen, and the degradation of each prefix."""

    units: tuple[Unit, ...]
    degradations: tuple[float, ...]


def branches_of(chosen: Sequence[Unit]) -> frozenset[str]:
    """All branches that go with these units."""
    return frozenset().union(*(unit.branches for unit in chosen))


def open_units(units: list[Unit], chosen: Sequence[Unit], quota: Quota) -> list[Unit]:
    """What may be dropped next; UserError when nothing is left."""
    base = branches_of(chosen)
    found = [u for u in units if not u.branches & base and quota.allows([*chosen, u])]
    if not found:
        raise UserError(
            f"after {len(chosen)} drops no layer is left that the budget lets go; drop fewer, or "
            "protect fewer layers."
        )
    return found


def saved_cost(quota: Quota, chosen: Sequence[Unit], unit: Unit, *, per_cost: bool) -> float:
    """The cost that a further unit saves; 1 where the budget is no cost, or costs do not count."""
    if quota.cost_of is None or not per_cost:
        return 1.0
    before, after = dropped_sizes(chosen), dropped_sizes([*chosen, unit])
    return max(quota.cost_of(before) - quota.cost_of(after), 1e-12)
