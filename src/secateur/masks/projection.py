"""From scores to masks that meet a budget exactly: bisection on one threshold, then filling up.

Kept units never grow with the threshold, nor does the cost; so bisection finds the lowest
threshold within the budget, and what is left of the budget goes to the best of the units below
it (ChipNet, ICLR 2021, for the bisection). Where a coarse unit, such as a whole layer, does not
fit and leaves a gap, it is kept and the threshold of fine units rises instead. The cost is that of
the model after removal, alignment included. Letters: R rows, U units per row.
"""

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.errors import OutOfReach
from secateur.masks.gates import Gate, allowed, count_above, keep
from secateur.masks.masks import (
    Left,
    acts_by_site,
    kept_shape,
    masks_of,
    product,
    sizes_of,
)
from secateur.masks.pricing import Pricing, exact_cost, left_of_masks

Counts = dict[str, int]

GAP = 0.002
"""Share of the dense cost that may stay unused while another choice of coarse units is open."""
TRIES = 12
"""Coarse units that are tried, at most."""


def least_cost(gates: Sequence[Gate], pricing: Pricing) -> float:
    """The cost when every gate keeps as little as it may."""
    margins = {gate.name: torch.zeros(gate.rows, gate.units) for gate in gates}
    return _Search(gates, pricing, margins).cost({gate.name: allowed(gate, 0) for gate in gates})


def check_reachable(gates: Sequence[Gate], pricing: Pricing, budget: str) -> None:
    """UserError, naming the smallest reachable budget, when the gates cannot go so far."""
    least, dense, unit = least_cost(gates, pricing), pricing.dense, pricing.cost_of.unit
    if least > pricing.limit:
        text = pricing.cost_of.text
        raise OutOfReach(
            f"budget '{budget}' is out of reach: with everything masked that may be, "
            f"{100 * least / dense:.1f}% {unit} are left ({text(least)} of {text(dense)}); raise "
            "the budget, take another --sharing such as mixed, or allow smaller widths with "
            "--align and --min-width."
        )


def project(
    gates: Sequence[Gate], margins: Mapping[str, Tensor], pricing: Pricing
) -> dict[str, Tensor]:
    """The kept units (R, U) of each gate, whose cost after removal is within the budget.

    The budget must be reachable. Among units of equal margin the order is that of the gates.
    """
    search = _Search(gates, pricing, margins)
    best = search.bisect({})
    assert best is not None
    blocked = search.fill_(best)
    gap = pricing.limit - search.cost(best)
    if gap <= GAP * pricing.dense:
        return search.kept(best)
    coarse = search.coarse(best)
    for name, count in blocked[:TRIES]:
        counts = search.bisect(coarse | {name: count})
        if counts is None:
            continue
        search.fill_(counts)
        left = pricing.limit - search.cost(counts)
        if left < gap:
            best, gap = counts, left
            if gap <= GAP * pricing.dense:
                break
    return search.kept(best)


class _Search:
    """The cost as a function of one count per gate."""

    def __init__(
        self, gates: Sequence[Gate], pricing: Pricing, margins: Mapping[str, Tensor]
    ) -> None:
        self.gates = {gate.name: gate for gate in gates}
        self.pricing = pricing
        self.margins = margins
        self.sites = acts_by_site(gates)
        self.branches = {branch.id: branch for branch in pricing.anatomy.branches}

    def kept(self, counts: Counts) -> dict[str, Tensor]:
        return {n: keep(g, self.margins[n], counts[n]) for n, g in self.gates.items()}

    def cost(self, counts: Counts) -> float:
        masks = masks_of(self.gates.values(), self.kept(counts))
        return exact_cost(self.pricing, left_of_masks(self.pricing, masks))

    def at(self, threshold: float) -> Counts:
        return {n: count_above(g, self.margins[n], threshold) for n, g in self.gates.items()}

    def bisect(self, least: Counts) -> Counts | None:
        """The counts at the lowest threshold within the budget, none below those of `least`.

        None where those alone are too many.
        """

        def at(threshold: float) -> Counts:
            found = self.at(threshold)
            return found | {name: max(found[name], count) for name, count in least.items()}

        def fits(threshold: float) -> bool:
            return self.cost(at(threshold)) <= self.pricing.limit

        levels = torch.cat([margin.flatten() for margin in self.margins.values()]).unique()
        if fits(-float("inf")):
            return at(-float("inf"))
        low, high = -1, len(levels) - 1
        if least and not fits(float(levels[high])):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(float(levels[middle])) else (middle, high)
        return at(float(levels[high]))

    def coarse(self, counts: Counts) -> Counts:
        """The counts of the gates of which one step is larger than the gap that may stay."""
        now, found = self.cost(counts), {}
        for name, gate in self.gates.items():
            fewer = allowed(gate, counts[name] - gate.align)
            if now - self.cost(counts | {name: fewer}) > GAP * self.pricing.dense:
                found[name] = counts[name]
        return found

    def fill_(self, counts: Counts) -> list[tuple[str, int]]:
        """Raise counts, best next unit first, as long as the budget allows.

        A gate whose next step does not fit is done, since all others only grow; these gates are
        returned, with the counts that did not fit. One whose next step costs nothing, because other
        units keep its place occupied, keeps its mask.
        """
        kept = self.kept(counts)
        left = left_of_masks(self.pricing, masks_of(self.gates.values(), kept))
        spent = exact_cost(self.pricing, left)
        queue = [(self._rank(name, counts[name]), name) for name in self.gates]
        heapq.heapify(queue)
        blocked: list[tuple[str, int]] = []
        while queue:
            _, name = heapq.heappop(queue)
            gate, count = self.gates[name], self._next(name, counts[name])
            if count is None:
                continue
            trial = kept | {name: keep(gate, self.margins[name], count)}
            changed = self._changed(gate, trial, left)
            more = self._more(left, changed)
            if 0 < more <= self.pricing.limit - spent:
                counts[name], kept, spent, left = count, trial, spent + more, changed
                heapq.heappush(queue, (self._rank(name, count), name))
            elif more > 0:
                blocked.append((name, count))
        return blocked

    def _rank(self, name: str, count: int) -> float:
        """Minus the margin of the next unit: rows that go together have the mean of theirs."""
        margin_RU = self.margins[name]
        table = margin_RU if self.gates[name].rule == "equal" else margin_RU.reshape(1, -1)
        if count >= table.shape[1]:
            return float("inf")
        return -float(table.sort(dim=-1, descending=True).values[:, count].mean())

    def _next(self, name: str, count: int) -> int | None:
        gate = self.gates[name]
        if count >= gate.most:
            return None
        return min(gate.most, (count // gate.align + 1) * gate.align)

    def _changed(self, gate: Gate, kept: Mapping[str, Tensor], left: Left) -> Left:
        """What is left when the branches and streams on which a gate acts have other masks."""
        shapes, widths = dict(left.shapes), dict(left.widths)
        for owner in {act.branch for act in gate.acts}:
            masks = {
                site: product(kept, acts)
                for (branch, site), acts in self.sites.items()
                if branch == owner
            }
            if owner in self.branches:
                shapes[owner] = kept_shape(self.branches[owner], masks, self.pricing.limits)
            else:
                widths[owner] = int(masks["width"].sum())
        return Left(shapes=shapes, widths=widths)

    def _more(self, before: Left, after: Left) -> float:
        """What `after` costs more; branches alone are priced where no width changes."""
        if before.widths != after.widths:
            return exact_cost(self.pricing, after) - exact_cost(self.pricing, before)
        changed = [b for b in self.branches if before.shapes[b] != after.shapes[b]]
        return sum(self._part(b, after) - self._part(b, before) for b in changed)

    def _part(self, branch: str, left: Left) -> float:
        sizes = sizes_of(self.branches[branch], left.shapes[branch]) | left.of_streams
        return self.pricing.cost_of.part(branch, sizes)
