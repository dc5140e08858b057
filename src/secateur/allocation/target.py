"""From candidates and a budget to one size per group: what is asked, and the answer within it."""

import math
from dataclasses import dataclass
from typing import Literal

from secateur.allocation.budget import Budget, CostBudget, CostUnit, Drop, ShapeBudget, SizesBudget
from secateur.allocation.candidates import (
    Limits,
    allowed_sizes,
    allowed_widths,
    block_candidates,
    drop_candidates,
)
from secateur.allocation.knapsack import solve_knapsack
from secateur.allocation.solvers import (
    CostOf,
    cost_function,
    solve_ranking,
    solve_uniform,
    uniform_sizes,
)
from secateur.allocation.types import Candidates, Key, Sizes, shapes_of
from secateur.errors import OutOfReach, UserError
from secateur.models.types import Anatomy, Cost, GroupName

NEXT_TO_NOTHING = 0.1
"""Share of what another layer's group of the kind saves at most."""
Solver = Literal["uniform", "ranking", "knapsack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The question put to a solver: a budget over some groups, within limits.

    `goal` is the budget in the user's words. `per_cost` ranks by loss over cost saved. Costs count
    the biases that a repair adds (`repaired`) and the linear layers that stand in for dropped
    branches (`replaced`).
    """

    budget: Budget
    goal: str
    groups: tuple[GroupName, ...]
    limits: Limits
    solver: Solver = "uniform"
    per_cost: bool = True
    repaired: bool = False
    replaced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A cost budget in absolute terms: the most that `cost_of` the chosen sizes may be.

    `dense` is the cost of the dense model as it is written.
    """

    cost_of: CostOf
    limit: float
    dense: float


def counted_target(anatomy: Anatomy, demand: Demand, budget: CostBudget) -> Target:
    """The target of a budget in MACs or parameters."""
    cost_of = cost_function(
        anatomy, budget.unit, repaired=demand.repaired, replaced=demand.replaced
    )
    whole = anatomy.reference
    dense = float(whole.macs if budget.unit == "macs" else whole.params)
    return Target(cost_of=cost_of, limit=cost_limit(anatomy, budget), dense=dense)


def decide(
    anatomy: Anatomy, candidates: list[Candidates], demand: Demand, target: Target | None = None
) -> Sizes:
    """One size for every candidate list, within the budget; UserError when it is out of reach.

    A budget in milliseconds needs a `target`, since times must be measured; one in MACs or
    parameters is counted.
    """
    if isinstance(demand.budget, ShapeBudget):
        return _by_shape(anatomy, candidates, demand.budget)
    if isinstance(demand.budget, SizesBudget):
        return {entry.key: entry.sizes[-1] for entry in candidates} | demand.budget.sizes
    return _by_cost(
        anatomy, candidates, demand, target or counted_target(anatomy, demand, demand.budget)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUse:
    """A cost budget in absolute terms, what was reached, and the share of it left unused."""

    unit: CostUnit
    limit: float
    reached: float
    shortfall_percent: float


def budget_use(before: Anatomy, after: Cost, budget: Budget) -> BudgetUse | None:
    """How a budget in MACs or parameters was met; None for all others."""
    if not isinstance(budget, CostBudget) or budget.unit == "ms":
        return None
    limit = cost_limit(before, budget)
    reached = after.macs if budget.unit == "macs" else after.params
    return BudgetUse(
        unit=budget.unit,
        limit=limit,
        reached=reached,
        shortfall_percent=100 * (limit - reached) / limit,
    )


def check_reachable(anatomy: Anatomy, demand: Demand, target: Target | None = None) -> None:
    """UserError when no choice of sizes meets the budget, found without looking at an image.

    Which sizes a group may take does not depend on what its units are worth. A budget in
    milliseconds can be checked only with a `target`, once times have been measured.
    """
    candidates = unweighed(anatomy, demand)
    if isinstance(demand.budget, SizesBudget) or "tokens" in demand.groups:
        return
    if isinstance(demand.budget, ShapeBudget):
        _check_shares(candidates, demand, demand.budget)
        _drops(anatomy, candidates, demand.budget)
        return
    if demand.budget.unit == "ms" and target is None:
        return
    target = target or counted_target(anatomy, demand, demand.budget)
    cost_of, unit = target.cost_of, demand.budget.unit
    least, dense = cost_of({entry.key: entry.sizes[0] for entry in candidates}), target.dense
    if least > target.limit:
        raise OutOfReach(
            f"budget '{demand.goal}' is out of reach: with the groups "
            f"{', '.join(demand.groups)}, their smallest widths and the protected layers, the "
            f"smallest reachable is {math.ceil(1000 * least / dense) / 10:.1f}% {unit} "
            f"({cost_of.text(least)} of {cost_of.text(dense)}); raise the budget, or allow more "
            "groups with --groups or smaller widths with --align and --min-width."
        )


def unweighed(anatomy: Anatomy, demand: Demand) -> list[Candidates]:
    """The candidates of all groups asked for, all losses 0."""
    candidates = []
    for branch in anatomy.branches:
        for group in demand.groups:
            if group in branch.groups:
                sizes = allowed_sizes(branch, group, demand.limits)
                losses = (0.0,) * len(sizes)
                candidates.append(
                    Candidates(owner=branch.id, group=group, sizes=sizes, losses=losses)
                )
        if "branch" in demand.groups:
            candidates.append(drop_candidates(branch.id, "branch", 0.0, demand.limits))
    if "width" in demand.groups:
        for stream in anatomy.streams:
            sizes = allowed_widths(stream, demand.limits)
            losses = (0.0,) * len(sizes)
            candidates.append(
                Candidates(owner=stream.id, group="width", sizes=sizes, losses=losses)
            )
    if "block" in demand.groups:
        candidates += [
            block_candidates(block, 0.0, demand.limits)
            for block in anatomy.blocks
            if block.branches
        ]
    return candidates


def cost_limit(anatomy: Anatomy, budget: CostBudget) -> float:
    """The budget as an absolute number of MACs or parameters."""
    dense = anatomy.reference
    whole = dense.macs if budget.unit == "macs" else dense.params
    return budget.amount * whole if budget.relative else budget.amount


def _by_cost(
    anatomy: Anatomy, candidates: list[Candidates], demand: Demand, target: Target
) -> Sizes:
    cost_of, limit = target.cost_of, target.limit
    if demand.solver == "knapsack":
        return solve_knapsack(anatomy, candidates, cost_of, limit)

    def solved(some: list[Candidates]) -> Sizes:
        if demand.solver == "uniform":
            return solve_uniform(anatomy, some, cost_of, limit)
        return solve_ranking(anatomy, some, cost_of, limit, per_cost=demand.per_cost)

    free = _free(anatomy, candidates, cost_of)
    whole = {entry.key: entry.sizes[-1] for entry in candidates if entry.key in free}
    if not whole:
        return solved(candidates)
    try:
        return solved([entry for entry in candidates if entry.key not in whole]) | whole
    except OutOfReach:
        return solved(candidates)


def _free(anatomy: Anatomy, candidates: list[Candidates], cost_of: CostOf) -> set[Key]:
    """Groups of the exact tail that cost next to nothing, so that making them smaller saves it."""
    tail = {branch.id for branch in anatomy.branches if branch.rows is not None}
    tail |= {block.id for block in anatomy.blocks if tail.issuperset(block.branches)}
    saved = {
        entry.key: cost_of.part(entry.owner, {})
        - cost_of.part(entry.owner, {entry.key: entry.sizes[0]})
        for entry in candidates
    }
    most = {
        entry.group: max(saved[m.key] for m in candidates if m.group == entry.group)
        for entry in candidates
    }
    return {key for key in saved if key[0] in tail and saved[key] < NEXT_TO_NOTHING * most[key[1]]}


def _by_shape(anatomy: Anatomy, candidates: list[Candidates], budget: ShapeBudget) -> Sizes:
    sizes: Sizes = {}
    for group, share in budget.shares.items():
        sizes |= uniform_sizes([entry for entry in candidates if entry.group == group], share)
    for entry in candidates:
        if entry.group in ("branch", "block"):
            sizes[entry.key] = 1
    return sizes | _drops(anatomy, candidates, budget)


def _check_shares(candidates: list[Candidates], demand: Demand, budget: ShapeBudget) -> None:
    """UserError when some layer cannot become as small as its share."""
    for group, share in budget.shares.items():
        own = [m for m in candidates if m.group == group and not demand.limits.protects(m.owner)]
        least = max((entry.sizes[0] / entry.sizes[-1] for entry in own), default=0.0)
        if least > share + 1e-9:
            raise OutOfReach(
                f"budget '{demand.goal}' is out of reach: the smallest reachable is "
                f"{math.ceil(1000 * least - 1e-9) / 10:g}% {group} at the widths allowed; raise "
                "the budget, or allow smaller widths with --align and --min-width."
            )


def _drops(anatomy: Anatomy, candidates: list[Candidates], budget: ShapeBudget) -> Sizes:
    """Size 0 for all that is dropped; blocks go first, so that no layer is dropped twice."""
    gone: Sizes = {}
    for drop in sorted(budget.drops, key=lambda drop: drop.kind != "block"):
        gone |= _dropped(anatomy, candidates, drop, gone)
    return gone


def _dropped(anatomy: Anatomy, candidates: list[Candidates], drop: Drop, gone: Sizes) -> Sizes:
    """Size 0 for the layers or blocks of one kind with the least predicted loss.

    A share is rounded up to whole layers, so that no more is kept than was asked for.
    """
    group = "block" if drop.kind == "block" else "branch"
    present = [entry for entry in candidates if entry.group == group]
    if drop.kind in ("attention", "mlp"):
        present = [m for m in present if anatomy.branch(m.owner).kind == drop.kind]
    count = math.ceil(drop.amount * len(present) - 1e-9) if drop.relative else int(drop.amount)
    left = shapes_of(anatomy, gone)
    free = [m for m in present if m.sizes[0] == 0 and left.get(m.owner, 0) is not None]
    droppable = sorted((m for m in free if m.key not in gone), key=lambda m: m.losses[0])
    if count > len(droppable):
        raise UserError(
            f"cannot drop {count} of kind '{drop.kind}': the model has {len(droppable)} that are "
            "not protected or dropped already; drop fewer."
        )
    return {entry.key: 0 for entry in droppable[:count]}
