"""What a model costs as a function of sizes, added up over its branches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from secateur.allocation.types import GROUPS_OF, Key, Sizes, shape_of, widths_of
from secateur.models.types import Anatomy, Branch, Cost, Shape

Price = Callable[[Branch, Shape | None], float]
"""The cost of one branch in some shape (None: dropped), at the present width of its stream."""
Part = Callable[[Sizes], float]


@dataclass(frozen=True, slots=True)
class CostOf:
    """The cost of the whole model: `ends`, whatever is no branch, plus a price per branch.

    Call it with sizes (missing ones are as they are in the model). `parts` are the functions that
    price the branches of a branch, block or stream, by its id. Every price is worked out once.
    `ends_at` prices the ends where they depend on the widths of streams.
    """

    unit: str
    ends: float
    branches: tuple[str, ...]
    parts: dict[str, tuple[Part, ...]]
    ends_at: Part | None = None

    def __call__(self, sizes: Sizes) -> float:
        """The cost of the whole model."""
        ends = self.ends if self.ends_at is None else self.ends_at(sizes)
        return ends + sum(self.part(branch, sizes) for branch in self.branches)

    def part(self, owner: str, sizes: Sizes) -> float:
        """The cost of one branch, of all branches of one block, or of all that a stream feeds."""
        return sum(price(sizes) for price in self.parts[owner])

    def share(self, owner: str, other: str) -> bool:
        """Whether two branches, blocks or streams have a branch in common."""
        return any(price in self.parts[other] for price in self.parts[owner])

    def text(self, amount: float) -> str:
        """An amount of this cost, for sentences."""
        return f"{amount:,.3f} ms" if self.unit == "ms" else f"{amount:,.0f}"


def additive_cost(anatomy: Anatomy, unit: str, ends: float, price: Price) -> CostOf:
    """The cost function with these `ends` and this price of a branch, both in `unit`.

    Widths of streams do not count in it.
    """

    def at_present(branch: Branch, shape: Shape | None, _width: int) -> float:
        return price(branch, shape)

    return CostOf(unit, ends, tuple(b.id for b in anatomy.branches), _parts(anatomy, at_present))


def cost_function(
    anatomy: Anatomy, unit: str, *, repaired: bool = False, replaced: bool = False
) -> CostOf:
    """Counted parameters or MACs of the whole model as a function of sizes.

    With `repaired`, the biases count that a repair may add to writers without one. With `replaced`,
    a linear layer counts for every dropped branch, but one for a dropped block; where neighbours
    are dropped and share one, the model costs less than this says.
    """

    def amount(cost: Cost) -> float:
        return float(cost.macs if unit == "macs" else cost.params)

    def price(branch: Branch, shape: Shape | None, width: int) -> float:
        cost = branch.cost(shape, width)
        if replaced and shape is None:
            cost = branch.linear_cost(width)
        elif repaired:
            cost = cost + branch.added_by_repair(shape, width)
        return amount(cost)

    def ends_at(sizes: Sizes) -> float:
        return amount(anatomy.ends_cost(widths_of(anatomy, sizes)))

    parts = _parts(anatomy, price, shared=replaced)
    for stream in anatomy.streams:
        own = [branch for branch in anatomy.branches if branch.stage == stream.stage]
        parts[stream.id] = (ends_at, *(parts[branch.id][0] for branch in own))
    branches = tuple(branch.id for branch in anatomy.branches)
    return CostOf(unit, ends_at({}), branches, parts, ends_at if anatomy.streams else None)


def with_fixed(cost_of: CostOf, fixed: Mapping[Key, int]) -> CostOf:
    """The same cost when some sizes are settled and only others are still to be chosen."""
    known: dict[int, Part] = {}

    def settled(part: Part) -> Part:
        return known.setdefault(id(part), lambda sizes: part({**sizes, **fixed}))

    return CostOf(
        cost_of.unit,
        cost_of.ends,
        cost_of.branches,
        {owner: tuple(map(settled, parts)) for owner, parts in cost_of.parts.items()},
        None if cost_of.ends_at is None else settled(cost_of.ends_at),
    )


def _parts(
    anatomy: Anatomy, price: Callable[[Branch, Shape | None, int], float], *, shared: bool = False
) -> dict[str, tuple[Part, ...]]:
    """Prices by branch and by block; if `shared`, the first of a dropped block pays for all."""
    by_id = {branch.id: branch for branch in anatomy.branches}
    parts: dict[str, tuple[Part, ...]] = {}
    for block in anatomy.blocks:
        for branch_id in block.branches:
            free = shared and branch_id != block.branches[0]
            part = _remembered(anatomy, by_id[branch_id], block.id, price, free=free)
            parts[branch_id] = (part,)
        parts[block.id] = tuple(parts[branch_id][0] for branch_id in block.branches)
    return parts


def _remembered(
    anatomy: Anatomy,
    branch: Branch,
    block_id: str,
    price: Callable[[Branch, Shape | None, int], float],
    *,
    free: bool,
) -> Part:
    """The price of a branch as a function of sizes; `free` if its block is dropped."""
    keys: list[Key] = [(block_id, "block"), (branch.id, "branch")]
    keys += [(branch.id, group) for group in GROUPS_OF[branch.kind]]
    stream = anatomy.stream_of(branch)
    width_key: Key = ("" if stream is None else stream.id, "width")
    known: dict[tuple[int | None, ...], float] = {}

    def cost(sizes: Sizes) -> float:
        if free and sizes.get((block_id, "block")) == 0:
            return 0.0
        chosen = (*map(sizes.get, keys), sizes.get(width_key))
        if chosen not in known:
            width = sizes.get(width_key, branch.width)
            known[chosen] = price(branch, shape_of(branch, block_id, sizes), width)
        return known[chosen]

    return cost
