"""From menus and a budget to one size per group."""

import math

from secateur.anatomy.types import Anatomy
from secateur.errors import UserError
from secateur.pipeline.options import Task
from secateur.planning.budget import CostBudget, Drop, ShapeBudget
from secateur.planning.solvers import (
    cost_function,
    solve_ranking,
    solve_uniform,
    uniform_sizes,
)
from secateur.planning.types import Menu, Sizes


def decide(anatomy: Anatomy, menus: list[Menu], task: Task) -> Sizes:
    """One size for every menu, within the budget; UserError when it is out of reach."""
    if isinstance(task.budget, ShapeBudget):
        return _by_shape(anatomy, menus, task.budget)
    return _by_cost(anatomy, menus, task, task.budget)


def cost_limit(anatomy: Anatomy, budget: CostBudget) -> float:
    """The budget as an absolute number of MACs or parameters."""
    dense = anatomy.cost()
    whole = dense.macs if budget.unit == "macs" else dense.params
    return budget.amount * whole if budget.relative else budget.amount


def _by_cost(anatomy: Anatomy, menus: list[Menu], task: Task, budget: CostBudget) -> Sizes:
    cost_of = cost_function(anatomy, budget.unit)
    limit = cost_limit(anatomy, budget)
    if task.preset.allocation == "uniform":
        return solve_uniform(anatomy, menus, cost_of, limit)
    return solve_ranking(anatomy, menus, cost_of, limit, per_cost=task.preset.per_cost)


def _by_shape(anatomy: Anatomy, menus: list[Menu], budget: ShapeBudget) -> Sizes:
    sizes: Sizes = {}
    for group, share in budget.shares.items():
        sizes |= uniform_sizes([menu for menu in menus if menu.group == group], share)
    for menu in menus:
        if menu.group in ("branch", "block"):
            sizes[menu.key] = 1
    for drop in budget.drops:
        sizes |= _dropped(anatomy, menus, drop)
    return sizes


def _dropped(anatomy: Anatomy, menus: list[Menu], drop: Drop) -> Sizes:
    """Size 0 for the layers or blocks of one kind with the least predicted loss."""
    group = "block" if drop.kind == "block" else "branch"
    present = [menu for menu in menus if menu.group == group]
    if drop.kind in ("attention", "mlp"):
        present = [m for m in present if anatomy.branch(m.owner).kind == drop.kind]
    count = math.floor(drop.amount * len(present) + 1e-9) if drop.relative else int(drop.amount)
    droppable = sorted((m for m in present if m.sizes[0] == 0), key=lambda m: m.losses[0])
    if count > len(droppable):
        raise UserError(
            f"cannot drop {count} of kind '{drop.kind}': the model has {len(droppable)} that are "
            "not protected; drop fewer."
        )
    return {menu.key: 0 for menu in droppable[:count]}
