"""Pick one size per candidate list under one budget: uniform shares or a global ranking of losses.

Both are monotone in one number (a share, or a price per unit of loss), found by bisection and
followed by a greedy fill, so that a budget is met from below and within one step of a group
(ChipNet, ICLR 2021, for the bisection; Kwon et al., arXiv 2204.09656, for exact filling).
"""

import math
from collections.abc import Callable

from secateur.allocation.costs import CostOf, cost_function
from secateur.allocation.types import Candidates, Key, Sizes
from secateur.errors import OutOfReach
from secateur.models.types import Anatomy

ROUNDING = 1e-9
"""Relative error that sums of costs may have."""

__all__ = ["CostOf", "cost_function", "fill", "solve_ranking", "solve_uniform", "uniform_sizes"]


def uniform_sizes(candidates: list[Candidates], share: float) -> Sizes:
    """Every group at the same share of its present size, rounded down to an allowed one.

    Candidates of whole branches and blocks are kept.
    """
    sizes: Sizes = {}
    for entry in candidates:
        if entry.group in ("branch", "block"):
            sizes[entry.key] = 1
            continue
        wanted = share * entry.sizes[-1] + 1e-9
        sizes[entry.key] = max((s for s in entry.sizes if s <= wanted), default=entry.sizes[0])
    return sizes


def _step_price(entry: Candidates, size: int, smaller: int, cost_of: CostOf | None) -> float:
    """Mean loss per unit removed of one step, or per cost that it alone would save."""
    loss = entry.loss(smaller) - entry.loss(size)
    if cost_of is None:
        return loss / (size - smaller)
    before, after = ({entry.key: units} for units in (size, smaller))
    saved = cost_of.part(entry.owner, before) - cost_of.part(entry.owner, after)
    return loss / max(saved, 1e-12)


def solve_uniform(
    anatomy: Anatomy, candidates: list[Candidates], cost_of: CostOf, limit: float
) -> Sizes:
    """The largest equal share of all groups within `limit`, then filled up group by group."""
    require_reachable(candidates, cost_of, limit)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if cost_of(uniform_sizes(candidates, middle)) <= limit:
            low = middle
        else:
            high = middle
    chosen = uniform_sizes(candidates, low)
    if cost_of(chosen) > limit:
        # WHY: even the smallest widths are too much, so whole layers must go as well.
        return solve_ranking(anatomy, candidates, cost_of, limit, per_cost=True)
    # WHY: a uniform plan stays as even as it can: the fill goes round by round.
    return fill(candidates, chosen, cost_of, limit, lambda entry, size: size / entry.sizes[-1])


def solve_ranking(
    anatomy: Anatomy, candidates: list[Candidates], cost_of: CostOf, limit: float, *, per_cost: bool
) -> Sizes:
    """Steps with the least loss (per cost saved, with `per_cost`) first, over all candidates."""
    require_reachable(candidates, cost_of, limit)
    priced = cost_of if per_cost else None
    prices = {
        (entry.key, smaller): _step_price(entry, size, smaller, priced)
        for entry in candidates
        for smaller, size in zip(entry.sizes, entry.sizes[1:], strict=False)
    }
    ladder = sorted({0.0, *prices.values()})

    def at(price: float) -> Sizes:
        sizes: Sizes = {}
        for entry in candidates:
            size = entry.sizes[-1]
            for smaller in reversed(entry.sizes[:-1]):
                if prices[entry.key, smaller] > price:
                    break
                size = smaller
            sizes[entry.key] = size
        return sizes

    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        if cost_of(at(ladder[middle])) <= limit:
            high = middle
        else:
            low = middle + 1
    chosen = at(ladder[low])
    if cost_of(chosen) > limit:
        chosen = {entry.key: entry.sizes[0] for entry in candidates}

    def urgency(entry: Candidates, size: int) -> float:
        return -prices[entry.key, size]

    filled = fill(candidates, chosen, cost_of, limit, urgency)
    while (restored := _restored(candidates, filled, cost_of, limit)) is not None:
        filled = fill(candidates, restored, cost_of, limit, urgency)
    return filled


def fill(
    candidates: list[Candidates],
    sizes: Sizes,
    cost_of: CostOf,
    limit: float,
    order: Callable[[Candidates, int], float],
) -> Sizes:
    """Give back single steps, lowest `order(entry, size)` first, while the budget allows."""
    sizes = dict(sizes)
    spent = cost_of(sizes)
    # WHY: a step that did not fit cannot fit later, when there is less room, unless a size of
    # the same branch or block has changed.
    stuck: set[Key] = set()
    grown = True
    while grown:
        grown = False
        growable = [m for m in candidates if m.key not in stuck and sizes[m.key] < m.sizes[-1]]
        for entry in sorted(growable, key=lambda m: order(m, sizes[m.key])):
            size = sizes[entry.key]
            before = cost_of.part(entry.owner, sizes)
            sizes[entry.key] = entry.sizes[entry.sizes.index(size) + 1]
            more = cost_of.part(entry.owner, sizes) - before
            # WHY: the sum over all branches decides; the difference, which is quick, may be off
            # by a rounding where costs are no whole numbers.
            if spent + more <= limit * (1 + ROUNDING) and cost_of(sizes) <= limit:
                spent, grown = cost_of(sizes), True
                stuck = {key for key in stuck if not cost_of.share(key[0], entry.owner)}
                break
            sizes[entry.key] = size
            stuck.add(entry.key)
    return sizes


def _restored(
    candidates: list[Candidates], sizes: Sizes, cost_of: CostOf, limit: float
) -> Sizes | None:
    """One dropped branch or block back at the largest widths that fit, if that lowers the loss.

    Single steps cannot do that: they bring a branch back whole or not at all.
    """
    dropped = [m for m in candidates if m.group in ("branch", "block") and sizes[m.key] == 0]
    for entry in sorted(dropped, key=lambda m: -m.losses[0]):
        inner = [
            m
            for m in candidates
            if m is not entry and m.group != "width" and cost_of.share(entry.owner, m.owner)
        ]
        for back in range(max((len(m.sizes) for m in inner), default=0)):
            tried = {**sizes, entry.key: 1}
            for other in inner:
                whole = other.group in ("branch", "block")
                tried[other.key] = other.sizes[-1 if whole else max(-1 - back, -len(other.sizes))]
            if sum(other.loss(tried[other.key]) for other in inner) > entry.losses[0]:
                break
            if cost_of(tried) <= limit:
                return tried
    return None


def require_reachable(candidates: list[Candidates], cost_of: CostOf, limit: float) -> None:
    """UserError naming the smallest reachable cost when it lies above `limit`."""
    least, dense = cost_of({entry.key: entry.sizes[0] for entry in candidates}), cost_of({})
    if least > limit:
        raise OutOfReach(
            f"the budget of {cost_of.text(limit)} is out of reach: with these groups, widths and "
            f"protected layers the smallest reachable is {cost_of.text(least)} "
            f"({math.ceil(1000 * least / dense) / 10:.1f} % of the dense model); raise the budget "
            "or allow more groups with --groups."
        )
