"""From menus and a budget to one size per group."""

import math
from dataclasses import dataclass

from secateur.allocation.budget import Budget, CostBudget, CostUnit, Drop, ShapeBudget, SizesBudget
from secateur.allocation.knapsack import solve_knapsack
from secateur.allocation.menus import allowed_sizes, allowed_widths, block_menu, drop_menu
from secateur.allocation.solvers import (
    CostOf,
    cost_function,
    solve_ranking,
    solve_uniform,
    uniform_sizes,
)
from secateur.allocation.types import Menu, Sizes, shapes_of
from secateur.errors import UserError
from secateur.methods.task import Task
from secateur.models.types import Anatomy, Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A cost budget in absolute terms: the most that `cost_of` the chosen sizes may be."""

    cost_of: CostOf
    limit: float


def counted_target(anatomy: Anatomy, task: Task, budget: CostBudget) -> Target:
    """The target of a budget in MACs or parameters."""
    repaired = task.preset.engine == "spectral" or (
        task.preset.repair != "none" or task.preset.stand_in == "affine"
    )
    replaced = task.preset.stand_in == "linear"
    cost_of = cost_function(anatomy, budget.unit, repaired=repaired, replaced=replaced)
    return Target(cost_of=cost_of, limit=cost_limit(anatomy, budget))


def decide(anatomy: Anatomy, menus: list[Menu], task: Task, target: Target | None = None) -> Sizes:
    """One size for every menu, within the budget; UserError when it is out of reach.

    A budget in milliseconds needs a `target`, since times must be measured; one in MACs or
    parameters is counted.
    """
    if isinstance(task.budget, ShapeBudget):
        return _by_shape(anatomy, menus, task.budget)
    if isinstance(task.budget, SizesBudget):
        return {menu.key: menu.sizes[-1] for menu in menus} | task.budget.sizes
    return _by_cost(anatomy, menus, task, target or counted_target(anatomy, task, task.budget))


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


def check_reachable(anatomy: Anatomy, task: Task, target: Target | None = None) -> None:
    """UserError when no choice of sizes meets the budget, found without looking at an image.

    Which sizes a group may take does not depend on what its units are worth. A budget in
    milliseconds can be checked only with a `target`, once times have been measured.
    """
    menus = unweighed(anatomy, task)
    if isinstance(task.budget, SizesBudget):
        return
    if isinstance(task.budget, ShapeBudget):
        _check_shares(menus, task, task.budget)
        _drops(anatomy, menus, task.budget)
        return
    if task.budget.unit == "ms" and target is None:
        return
    target = target or counted_target(anatomy, task, task.budget)
    cost_of, unit = target.cost_of, task.budget.unit
    least, dense = cost_of({menu.key: menu.sizes[0] for menu in menus}), cost_of({})
    if least > target.limit:
        raise UserError(
            f"budget '{task.options.goal}' is out of reach: with the groups "
            f"{', '.join(task.groups)}, their smallest widths and the protected layers, the "
            f"smallest reachable is {math.ceil(1000 * least / dense) / 10:.1f}% {unit} "
            f"({cost_of.text(least)} of {cost_of.text(dense)}); raise the budget, or allow more "
            "groups with --groups or smaller widths with --align and --min-width."
        )


def unweighed(anatomy: Anatomy, task: Task) -> list[Menu]:
    """The menus of a task, all losses 0."""
    menus = []
    for branch in anatomy.branches:
        for group in task.groups:
            if group in branch.groups:
                sizes = allowed_sizes(branch, group, task.limits)
                losses = (0.0,) * len(sizes)
                menus.append(Menu(owner=branch.id, group=group, sizes=sizes, losses=losses))
        if "branch" in task.groups:
            menus.append(drop_menu(branch.id, "branch", 0.0, task.limits))
    if "width" in task.groups:
        for stream in anatomy.streams:
            sizes = allowed_widths(stream, task.limits)
            losses = (0.0,) * len(sizes)
            menus.append(Menu(owner=stream.id, group="width", sizes=sizes, losses=losses))
    if "block" in task.groups:
        menus += [block_menu(block, 0.0, task.limits) for block in anatomy.blocks if block.branches]
    return menus


def cost_limit(anatomy: Anatomy, budget: CostBudget) -> float:
    """The budget as an absolute number of MACs or parameters."""
    dense = anatomy.cost()
    whole = dense.macs if budget.unit == "macs" else dense.params
    return budget.amount * whole if budget.relative else budget.amount


def _by_cost(anatomy: Anatomy, menus: list[Menu], task: Task, target: Target) -> Sizes:
    cost_of, limit = target.cost_of, target.limit
    if task.preset.allocation == "uniform":
        return solve_uniform(anatomy, menus, cost_of, limit)
    if task.preset.allocation == "knapsack":
        return solve_knapsack(anatomy, menus, cost_of, limit)
    return solve_ranking(anatomy, menus, cost_of, limit, per_cost=task.preset.per_cost)


def _by_shape(anatomy: Anatomy, menus: list[Menu], budget: ShapeBudget) -> Sizes:
    sizes: Sizes = {}
    for group, share in budget.shares.items():
        sizes |= uniform_sizes([menu for menu in menus if menu.group == group], share)
    for menu in menus:
        if menu.group in ("branch", "block"):
            sizes[menu.key] = 1
    return sizes | _drops(anatomy, menus, budget)


def _check_shares(menus: list[Menu], task: Task, budget: ShapeBudget) -> None:
    """UserError when some layer cannot become as small as its share."""
    for group, share in budget.shares.items():
        own = [m for m in menus if m.group == group and not task.limits.protects(m.owner)]
        least = max((menu.sizes[0] / menu.sizes[-1] for menu in own), default=0.0)
        if least > share + 1e-9:
            raise UserError(
                f"budget '{task.options.goal}' is out of reach: the smallest reachable is "
                f"{math.ceil(1000 * least - 1e-9) / 10:g}% {group} at the widths allowed; raise "
                "the budget, or allow smaller widths with --align and --min-width."
            )


def _drops(anatomy: Anatomy, menus: list[Menu], budget: ShapeBudget) -> Sizes:
    """Size 0 for all that is dropped; blocks go first, so that no layer is dropped twice."""
    gone: Sizes = {}
    for drop in sorted(budget.drops, key=lambda drop: drop.kind != "block"):
        gone |= _dropped(anatomy, menus, drop, gone)
    return gone


def _dropped(anatomy: Anatomy, menus: list[Menu], drop: Drop, gone: Sizes) -> Sizes:
    """Size 0 for the layers or blocks of one kind with the least predicted loss.

    A share is rounded up to whole layers, so that no more is kept than was asked for.
    """
    group = "block" if drop.kind == "block" else "branch"
    present = [menu for menu in menus if menu.group == group]
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
    return {menu.key: 0 for menu in droppable[:count]}
