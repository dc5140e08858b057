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

from secateur.allocation.candidates import least_sizes
from secateur.allocation.costs import CostOf, with_fixed
from secateur.allocation.solvers import fill, require_reachable
from secateur.allocation.types import Candidates, Sizes
from secateur.errors import UserError
from secateur.models.types import Anatomy

GAP = 1e-4
"""Relative gap to the optimum at which the solver may stop."""
WIDTHS = 7
"""Widths of a stream that are tried first, evenly spread, before the neighbours of the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """Sizes of some groups that exclude each other with the other options of `places`."""

    places: tuple[str, ...]
    sizes: Sizes
    loss: float
    cost: float


def solve_knapsack(
    anatomy: Anatomy, candidates: list[Candidates], cost_of: CostOf, limit: float
) -> Sizes:
    """The sizes with the least summed loss whose cost stays within `limit`.

    `cost_of` must add up over branches, as parameters, MACs and tabled latencies do. The widths of
    streams multiply all else, so one knapsack is solved for each width that is tried. Raises
    UserError naming the smallest reachable cost when the limit is below it.
    """
    require_reachable(candidates, cost_of, limit)
    inner = [entry for entry in candidates if entry.group != "width"]
    streams = [entry for entry in candidates if entry.group == "width"]
    if not streams:
        return _at_widths(anatomy, inner, cost_of, limit, {})
    found: Sizes = {stream.key: stream.sizes[0] for stream in streams}
    for stream in streams:
        found = _best_width(anatomy, inner, stream, cost_of, limit, found)
    return found


def _best_width(
    anatomy: Anatomy,
    inner: list[Candidates],
    stream: Candidates,
    cost_of: CostOf,
    limit: float,
    found: Sizes,
) -> Sizes:
    """`found` with the best width of one stream, and all but other widths chosen anew for it.

    A few widths are tried, then those between the best and its neighbours, until none is left.
    """
    settled = {key: size for key, size in found.items() if key[1] == "width"}
    tried: dict[int, tuple[float, Sizes]] = {}

    def loss_at(place: int) -> float:
        if place not in tried:
            widths = {**settled, stream.key: stream.sizes[place]}
            try:
                sizes = _at_widths(anatomy, inner, cost_of, limit, widths)
            except UserError:
                tried[place] = (float("inf"), widths)
            else:
                loss = stream.losses[place] + sum(m.loss(sizes[m.key]) for m in inner)
                tried[place] = (loss, {**sizes, **widths})
        return tried[place][0]

    last = len(stream.sizes) - 1
    step = max(1, -(-last // max(WIDTHS - 1, 1)))
    best = min({*range(0, last, step), last}, key=loss_at)
    while step > 1:
        step = -(-step // 2)
        near = {max(0, best - step), best, min(last, best + step)}
        best = min(near, key=loss_at)
    return tried[best][1]


def _at_widths(
    anatomy: Anatomy, candidates: list[Candidates], cost_of: CostOf, limit: float, widths: Sizes
) -> Sizes:
    """The best sizes when streams have these widths."""
    cost_of = with_fixed(cost_of, widths)
    require_reachable(candidates, cost_of, limit)
    dense: Sizes = {entry.key: entry.sizes[-1] for entry in candidates}
    options = _options(anatomy, candidates, cost_of)
    sizes = _within(options, dense, cost_of, limit) or least_sizes(candidates)

    def urgency(entry: Candidates, size: int) -> float:
        return -entry.loss(size)

    return fill(candidates, sizes, cost_of, limit, urgency)


def _options(anatomy: Anatomy, candidates: list[Candidates], cost_of: CostOf) -> list[_Option]:
    """All options, their cost relative to the dense model's."""
    options: list[_Option] = []

    def add(places: tuple[str, ...], owner: str, picked: Sizes, loss: float) -> None:
        cost = cost_of.part(owner, picked) - cost_of.part(owner, {})
        options.append(_Option(places=places, sizes=picked, loss=loss, cost=cost))

    blocks = {block.id: block.branches for block in anatomy.blocks}
    own: dict[str, list[Candidates]] = {branch.id: [] for branch in anatomy.branches}
    for entry in candidates:
        if entry.group not in ("branch", "block"):
            own[entry.owner].append(entry)
        elif entry.sizes[0] == 0:
            places = (entry.owner,) if entry.group == "branch" else blocks[entry.owner]
            add(places, entry.owner, {entry.key: 0}, entry.losses[0])
    for branch_id, units in own.items():
        sizes_and_losses = (zip(entry.sizes, entry.losses, strict=True) for entry in units)
        for combination in itertools.product(*sizes_and_losses):
            picked = {entry.key: size for entry, (size, _) in zip(units, combination, strict=True)}
            add((branch_id,), branch_id, picked, sum(loss for _, loss in combination))
    return options


def _within(options: list[_Option], dense: Sizes, cost_of: CostOf, limit: float) -> Sizes | None:
    """The best sizes whose true cost keeps to the limit; None if the solver finds none."""
    room = limit - cost_of(dense)
    # WHY: HiGHS keeps constraints up to a tolerance, which is many MACs of a large model.
    for _ in range(5):
        chosen = _solve(options, room)
        if chosen is None:
            return None
        sizes = dict(dense)
        for option in chosen:
            sizes |= option.sizes
        excess = cost_of(sizes) - limit
        if excess <= 0:
            return sizes
        room -= 2 * excess
    return None


def _solve(options: list[_Option], room: float) -> list[_Option] | None:
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
    # WHY: the largest losses are never chosen unless nothing else fits; scaled by them, all that
    # matters would fall below the solver's tolerances.
    spread = float(np.median(losses[losses > 0])) if (losses > 0).any() else 1.0
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
        return None
    return [option for option, taken in zip(options, result.x, strict=True) if taken > 0.5]
