"""Improve a set of layers to drop by an evolution of whole sets."""

import random
from collections.abc import Sequence

from secateur.ablation.layers import Removal
from secateur.allocation.quota import Quota, Unit
from secateur.methods.layer_search.drops import Found, OnStep, branches_of

OFFSPRING = 16
"""Changed plans per generation."""
SURVIVORS = 4
"""Those of them that are looked at on all images, after all were on a few."""
FEW = 0.25
"""The share of the images that is a few."""


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
    arXiv 2410.14649). The degradation of a set of layers is not the sum of its parts, which is why
    a search over whole sets can beat any score.
    """
    chance = random.Random(seed)
    parent = tuple(start)
    (best,) = removal.degradations(branches_of(parent), [branches_of(parent)])
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
            rough = removal.degradations(base, [frozenset(s) for s in sets], share=FEW)
            order = sorted(range(len(sets)), key=rough.__getitem__)
            sets = [sets[i] for i in order[:SURVIVORS]]
        for one, degradation in zip(
            sets, removal.degradations(base, [frozenset(s) for s in sets]), strict=True
        ):
            if degradation < best:
                parent, best = by_set[one], degradation
        on_step(generation + 1, generations)
    return Found(units=parent, degradations=(best,) * len(parent))


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
