"""Drop the layer whose removal costs least now, measure all others again, and so on."""

from secateur.ablation.layers import Removal
from secateur.allocation.quota import Quota, Unit
from secateur.methods.layer_search.drops import (
    Found,
    OnStep,
    branches_of,
    open_units,
    saved_cost,
)


def greedy(
    removal: Removal, units: list[Unit], quota: Quota, *, per_cost: bool, on_step: OnStep
) -> Found:
    """Drop what costs least now, look again at all others, until the quota is met.

    Every step measures every remaining unit on top of those already gone (SLEB, arXiv 2402.09025;
    BlockPruner, arXiv 2406.10594; FinerCut, arXiv 2405.18218). `per_cost` divides the degradation
    added by the cost saved, where the budget is a cost. Afterwards, units that need not go come
    back, the latest first.
    """
    chosen: list[Unit] = []
    degradations: list[float] = []
    last = 0.0
    while not quota.met(chosen):
        base = branches_of(chosen)
        open_ = open_units(units, chosen, quota)
        found = removal.degradations(base, [base | unit.branches for unit in open_])
        worth = {
            unit.key: (degradation - last) / saved_cost(quota, chosen, unit, per_cost=per_cost)
            for unit, degradation in zip(open_, found, strict=True)
        }
        best = min(range(len(open_)), key=lambda i: (worth[open_[i].key], i))
        chosen.append(open_[best])
        last = found[best]
        degradations.append(last)
        on_step(len(chosen), len(units))
    return _without_surplus(removal, chosen, degradations, quota)


def _without_surplus(
    removal: Removal, chosen: list[Unit], degradations: list[float], quota: Quota
) -> Found:
    needed = list(chosen)
    for unit in reversed(chosen):
        fewer = [other for other in needed if other is not unit]
        if quota.cost_of is not None and quota.met(fewer):
            needed = fewer
    if len(needed) < len(chosen):
        prefixes = [branches_of(needed[: i + 1]) for i in range(len(needed))]
        degradations = removal.degradations(frozenset(), prefixes) if prefixes else []
    return Found(units=tuple(needed), degradations=tuple(degradations))
