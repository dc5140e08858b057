"""When enough layers are gone: budgets for searches that drop them one by one."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from secateur.allocation.budget import Budget, CostBudget, DropKind, SizesBudget
from secateur.allocation.costs import CostOf
from secateur.allocation.types import Candidates, Key, Sizes
from secateur.errors import UserError
from secateur.models.types import Anatomy


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A branch or block that may go, with the branches that go with it."""

    key: Key
    kind: DropKind
    branches: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Drops to make, by kind (`layer`: of either kind), or a cost to get below."""

    counts: Counter[DropKind]
    cost_of: CostOf | None = None
    limit: float = 0.0

    def allows(self, chosen: Iterable[Unit]) -> bool:
        """Whether these drops are not yet too many."""
        if self.cost_of is not None:
            return True
        have = Counter(unit.kind for unit in chosen)
        extra = sum(max(0, have[kind] - self.counts[kind]) for kind in _BRANCHES)
        return have["block"] <= self.counts["block"] and extra <= self.counts["layer"]

    def met(self, chosen: Iterable[Unit]) -> bool:
        """Whether these drops are enough."""
        chosen = list(chosen)
        if self.cost_of is not None:
            return self.cost_of(dropped_sizes(chosen)) <= self.limit
        return self.allows(chosen) and len(chosen) == sum(self.counts.values())


_BRANCHES: tuple[DropKind, ...] = ("attention", "mlp")


def dropped_sizes(chosen: Iterable[Unit]) -> Sizes:
    """Sizes in which these units are gone."""
    return {unit.key: 0 for unit in chosen}


def units_of(anatomy: Anatomy, candidates: list[Candidates]) -> list[Unit]:
    """What the candidates allow to drop, in stream order, blocks last."""
    blocks = {block.id: block.branches for block in anatomy.blocks}
    units = []
    for entry in candidates:
        if entry.sizes[0] != 0:
            continue
        if entry.group == "block":
            units.append(Unit(key=entry.key, kind="block", branches=frozenset(blocks[entry.owner])))
        elif entry.group == "branch":
            kind = anatomy.branch(entry.owner).kind
            units.append(Unit(key=entry.key, kind=kind, branches=frozenset({entry.owner})))
    return units


def quota(units: list[Unit], budget: Budget, cost_of: CostOf | None, limit: float) -> Quota:
    """The quota of a budget; UserError for budgets that say nothing about whole layers.

    A share of the layers is rounded up, as everywhere.
    """
    if isinstance(budget, CostBudget):
        return Quota(counts=Counter(), cost_of=cost_of, limit=limit)
    if isinstance(budget, SizesBudget) or budget.shares:
        raise UserError(
            "this preset searches for layers to drop and cannot make groups narrower; write the "
            "budget as 'drop 4 attention', 'drop 3 blocks' or a cost such as '80% macs'."
        )
    counts: Counter[DropKind] = Counter()
    for drop in budget.drops:
        present = sum(
            unit.kind == drop.kind or (drop.kind == "layer" and unit.kind in _BRANCHES)
            for unit in units
        )
        count = math.ceil(drop.amount * present - 1e-9) if drop.relative else int(drop.amount)
        if count > present:
            raise UserError(
                f"cannot drop {count} of kind '{drop.kind}': the model has {present} that are not "
                "protected; drop fewer."
            )
        counts[drop.kind] += count
    return Quota(counts=counts)
