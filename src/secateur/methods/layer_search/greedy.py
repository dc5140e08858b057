"""Searches for the layers to drop by what the whole model loses: greedy, and evolutionary."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secateur.ablation.removal import Removal
from secateur.allocation.quota import Quota, Unit, dropped_sizes
from secateur.errors import UserError

OFFSPRING = 16
"""Changed plans per generation."""
SURVIVORS = 4
"""Those of them that are looked at on all images, after all were on a few."""
FEW = 0.25
"""The share of the images that is a few."""

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Units to drop, in the order in which they were chosen, and the damage of each prefix."""

    units: tuple[Unit, ...]
    damages: tuple[float, ...]


def branches_of(chosen: Sequence[Unit]) -> frozenset[str]:
    """All branches that go with these units."""
    return frozenset().union(*(unit.branches for unit in chosen))


def greedy(
    removal: Removal, units: list[Unit], quota: Quota, *, per_cost: bool, on_step: OnStep
) -> Found:
    """Drop what costs least now, look again at all others, until the quota is met.

    Every step measures every remaining unit on top of those already gone (SLEB, arXiv 2402.09025;
    BlockPruner, arXiv 2406.10594; FinerCut, arXiv 2405.18218). `per_cost` divides the damage
    added by the cost saved, where the budget is a cost. Afterwards, units that need not go come
    back, the latest first.
    """
    chosen: list[Unit] = []
    damages: list[float] = []
    last = 0.0
    while not quota.met(chosen):
        base = branches_of(chosen)
        open_ = open_units(units, chosen, quota)
        found = removal.damages(base, [base | unit.branches for unit in open_])
        worth = {
            unit.key: (damage - last) / _saved(quota, chosen, unit, per_cost)
            for unit, damage in zip(open_, found, strict=True)
        }
        best = min(range(len(open_)), key=lambda i: (worth[open_[i].key], i))
        chosen.append(open_[best])
        last = found[best]
        damages.append(last)
        on_step(len(chosen), len(units))
    return _without_surplus(removal, chosen, damages, quota)


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


def evolutionary(
    removal: Removal,
    units: list[Unit],
    quota: Quota,
    start: Sequence[Unit],
    *,
    generations: int,
    seed: int,
    on_step: OnStep,
) -> Found:
    """Improve `start`, which meets the quota, by swaps of dropped and kept units.

    A (1 + 16) evolution with selection in two steps, few images first (EvoPress, ICML 2025,
    arXiv 2410.14649). The damage of a set of layers is not the sum of its parts, which is why a
    search over whole sets can beat any score.
    """
    chance = random.Random(seed)
    parent = tuple(start)
    (best,) = removal.damages(branches_of(parent), [branches_of(parent)])
    for generation in range(generations):
        children = [
            child
            for child in (_mutated(parent, units, quota, chance) for _ in range(OFFSPRING))
            if child is not None
        ]
        base = branches_of(parent)
        sets = sorted({tuple(sorted(branches_of(child))) for child in children})
        by_set = {tuple(sorted(branches_of(child))): child for child in children}
        if len(sets) > SURVIVORS:
            rough = removal.damages(base, [frozenset(s) for s in sets], share=FEW)
            order = sorted(range(len(sets)), key=rough.__getitem__)
            sets = [sets[i] for i in order[:SURVIVORS]]
        for one, damage in zip(
            sets, removal.damages(base, [frozenset(s) for s in sets]), strict=True
        ):
            if damage < best:
                parent, best = by_set[one], damage
        on_step(generation + 1, generations)
    return Found(units=parent, damages=(best,) * len(parent))


def _mutated(
    parent: Sequence[Unit], units: list[Unit], quota: Quota, chance: random.Random
) -> tuple[Unit, ...] | None:
    """One to three swaps; more drops where a cost budget is no longer met; None if out of reach."""
    child = list(parent)
    for _ in range(min(chance.randint(1, 3), chance.randint(1, 3))):
        kept = [u for u in units if u not in child and not u.branches & branches_of(child)]
        if not child or not kept:
            return None
        out = chance.choice(child)
        rest = [unit for unit in child if unit is not out]
        fitting = [u for u in kept if quota.allows([*rest, u])]
        if fitting:
            child = [*rest, chance.choice(fitting)]
    while not quota.met(child):
        kept = [u for u in units if not u.branches & branches_of(child)]
        kept = [u for u in kept if quota.allows([*child, u])]
        if not kept:
            return None
        child.append(chance.choice(kept))
    for unit in chance.sample(child, len(child)):
        fewer = [other for other in child if other is not unit]
        if quota.met(fewer):
            child = fewer
    return tuple(child)


def _saved(quota: Quota, chosen: Sequence[Unit], unit: Unit, per_cost: bool) -> float:
    if quota.cost_of is None or not per_cost:
        return 1.0
    before, after = dropped_sizes(chosen), dropped_sizes([*chosen, unit])
    return max(quota.cost_of(before) - quota.cost_of(after), 1e-12)


def _without_surplus(
    removal: Removal, chosen: list[Unit], damages: list[float], quota: Quota
) -> Found:
    needed = list(chosen)
    for unit in reversed(chosen):
        fewer = [other for other in needed if other is not unit]
        if quota.cost_of is not None and quota.met(fewer):
            needed = fewer
    if len(needed) < len(chosen):
        prefixes = [branches_of(needed[: i + 1]) for i in range(len(needed))]
        damages = removal.damages(frozenset(), prefixes) if prefixes else []
    return Found(units=tuple(needed), damages=tuple(damages))
