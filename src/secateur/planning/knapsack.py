"""One budget across all groups as a multiple-choice knapsack, solved exactly by HiGHS.

Every branch chooses one option: a size for each of its groups, or to be dropped; a block may be
dropped with all its branches. Minimise the summed predicted loss within the cost limit
(the formulation of ZipLM, arXiv 2302.04089, and Puzzle, arXiv 2411.19146).
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from secateur.anatomy.types import Anatomy
from secateur.errors import UserError
from secateur.planning.solvers import CostOf, fill, require_reachable
from secateur.planning.types import Menu, Sizes

GAP = 1e-4
"""Relative gap to the optimum at which the solver may stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """Sizes of some groups that exclude each other with the other options of `places`."""

    places: tuple[str, ...]
    sizes: Sizes
    loss: float
    cost: float


def solve_knapsack(anatomy: Anatomy, menus: list[Menu], cost_of: CostOf, limit: float) -> Sizes:
    """The sizes with the least summed loss whose cost stays within `limit`.

    `cost_of` must add up over branches, as parameters, MACs and tabled latencies do. Raises
    UserError naming the smallest reachable cost when the limit is below it.
    """
    require_reachable(anatomy, menus, cost_of, limit)
    dense: Sizes = {menu.key: menu.sizes[-1] for menu in menus}
    whole = cost_of(dense)
    options = _options(anatomy, menus, dense, cost_of, whole)
    chosen = _solve(options, limit - whole)
    sizes = dict(dense)
    for option in chosen:
        sizes |= option.sizes
    if cost_of(sizes) > limit:
        raise RuntimeError("the knapsack's costs do not add up over branches")

    def urgency(menu: Menu, size: int) -> float:
        return -menu.loss(size)

    return fill(menus, sizes, cost_of, limit, urgency)


def _options(
    anatomy: Anatomy, menus: list[Menu], dense: Sizes, cost_of: CostOf, whole: float
) -> list[_Option]:
    """All options, their cost relative to the dense model's."""
    options: list[_Option] = []
    for branch in anatomy.branches:
        own = [menu for menu in menus if menu.owner == branch.id]
        units = [menu for menu in own if menu.group != "branch"]
        for combination in itertools.product(*(menu.sizes for menu in units)):
            picked = dict(zip((menu.key for menu in units), combination, strict=True))
            loss = sum(menu.loss(picked[menu.key]) for menu in units)
            cost = cost_of({**dense, **picked}) - whole
            options.append(_Option(places=(branch.id,), sizes=picked, loss=loss, cost=cost))
        for menu in own:
            if menu.group == "branch" and menu.sizes[0] == 0:
                gone: Sizes = {menu.key: 0}
                cost = cost_of({**dense, **gone}) - whole
                options.append(
                    _Option(places=(branch.id,), sizes=gone, loss=menu.losses[0], cost=cost)
                )
    blocks = {block.id: block.branches for block in anatomy.blocks}
    for menu in menus:
        if menu.group == "block" and menu.sizes[0] == 0:
            gone = {menu.key: 0}
            cost = cost_of({**dense, **gone}) - whole
            options.append(
                _Option(places=blocks[menu.owner], sizes=gone, loss=menu.losses[0], cost=cost)
            )
    return options


def _solve(options: list[_Option], room: float) -> list[_Option]:
    """Exactly one option per place, least loss, summed relative cost at most `room`."""
    places = sorted({place for option in options for place in option.places})
    row_of = {place: row for row, place in enumerate(places)}
    rows, columns = [], []
    for column, option in enumerate(options):
        for place in option.places:
            rows.append(row_of[place])
            columns.append(column)
    once = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(places), len(options)))
    losses = np.array([option.loss for option in options])
    costs = np.array([option.cost for option in options])
    scale = max(float(np.abs(costs).max()), 1e-12)
    spread = max(float(losses.max()), 1e-12)
    result = milp(
        losses / spread,
        constraints=[
            LinearConstraint(once, 1, 1),
            LinearConstraint(costs[None] / scale, -np.inf, room / scale),
        ],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP, "time_limit": 60.0},
    )
    if result.x is None:
        raise UserError(
            f"no combination of widths meets the budget ({result.message}); raise the budget or "
            "allow more groups with --groups."
        )
    return [option for option, taken in zip(options, result.x, strict=True) if taken > 0.5]
