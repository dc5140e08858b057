"""What a model costs as a function of sizes, added up over its branches."""

from collections.abc import Callable
from dataclasses import dataclass

from secateur.anatomy.types import Anatomy, Branch, Shape
from secateur.planning.types import GROUPS_OF, Key, Sizes, shape_of

Price = Callable[[Branch, Shape | None], float]
"""The cost of one branch in some shape (None: dropped)."""


@dataclass(frozen=True, slots=True)
class CostOf:
    """The cost of the whole model: `ends`, whatever is no branch, plus a price per branch.

    Call it with sizes (missing ones are as they are in the model). `parts` are the functions that
    price the branches of a branch or block, by its id. Every price is worked out once.
    """

    unit: str
    ends: float
    branches: tuple[str, ...]
    parts: dict[str, tuple[Callable[[Sizes], float], ...]]

    def __call__(self, sizes: Sizes) -> float:
        """The cost of the whole model."""
        return self.ends + sum(self.part(branch, sizes) for branch in self.branches)

    def part(self, owner: str, sizes: Sizes) -> float:
        """The cost of one branch, or of all branches of one block."""
        return sum(price(sizes) for price in self.parts[owner])

    def share(self, owner: str, other: str) -> bool:
        """Whether two branches or blocks have a branch in common."""
        return any(price in self.parts[other] for price in self.parts[owner])

    def text(self, amount: float) -> str:
        """An amount of this cost, for sentences."""
        return f"{amount:,.3f} ms" if self.unit == "ms" else f"{amount:,.0f}"


def additive_cost(anatomy: Anatomy, unit: str, ends: float, price: Price) -> CostOf:
    """The cost function with these `ends` and this price of a branch, both in `unit`."""
    by_id = {branch.id: branch for branch in anatomy.branches}
    parts: dict[str, tuple[Callable[[Sizes], float], ...]] = {}
    for block in anatomy.blocks:
        for branch_id in block.branches:
            parts[branch_id] = (_remembered(by_id[branch_id], block.id, price),)
        parts[block.id] = tuple(parts[branch_id][0] for branch_id in block.branches)
    return CostOf(unit, ends, tuple(by_id), parts)


def cost_function(anatomy: Anatomy, unit: str, *, repaired: bool = False) -> CostOf:
    """Counted parameters or MACs of the whole model as a function of sizes.

    With `repaired`, the biases count that a repair may add to writers without one.
    """
    ends = anatomy.ends.at(anatomy.width)

    def price(branch: Branch, shape: Shape | None) -> float:
        cost = branch.cost(shape)
        if repaired:
            cost = cost + branch.added_by_repair(shape)
        return float(cost.macs if unit == "macs" else cost.params)

    return additive_cost(anatomy, unit, float(ends.macs if unit == "macs" else ends.params), price)


def _remembered(branch: Branch, block_id: str, price: Price) -> Callable[[Sizes], float]:
    keys: list[Key] = [(block_id, "block"), (branch.id, "branch")]
    keys += [(branch.id, group) for group in GROUPS_OF[branch.kind]]
    known: dict[tuple[int | None, ...], float] = {}

    def cost(sizes: Sizes) -> float:
        chosen = tuple(map(sizes.get, keys))
        if chosen not in known:
            known[chosen] = price(branch, shape_of(branch, block_id, sizes))
        return known[chosen]

    return cost
