"""The knapsack equals brute force, never exceeds its limit, and drops what it should."""

import itertools
import random

import pytest

from secateur.allocation.knapsack import solve_knapsack
from secateur.allocation.solvers import cost_function
from secateur.allocation.types import Candidates, Sizes
from secateur.errors import UserError
from tests.hosts import HOSTS, anatomy_of

ANATOMY = anatomy_of(sorted(HOSTS)[0])


def candidates(seed: int, *, drop: bool = True) -> list[Candidates]:
    """Falling random losses for two groups of the first two branches, and whether to drop."""
    chance = random.Random(seed)
    found: list[Candidates] = []
    for branch in ANATOMY.branches[:2]:
        for group in branch.groups[:1]:
            present = branch.shape.size(group)
            sizes = tuple(sorted({1, max(1, present // 2), present}))
            losses = sorted((chance.random() for _ in sizes[:-1]), reverse=True)
            found.append(
                Candidates(owner=branch.id, group=group, sizes=sizes, losses=(*losses, 0.0))
            )
        if drop:
            loss = 1 + chance.random()
            found.append(
                Candidates(owner=branch.id, group="branch", sizes=(0, 1), losses=(loss, 0.0))
            )
    return found


def brute_force(found: list[Candidates], limit: float) -> float:
    cost_of = cost_function(ANATOMY, "macs")
    best = float("inf")
    for picked in itertools.product(*(entry.sizes for entry in found)):
        sizes: Sizes = {entry.key: size for entry, size in zip(found, picked, strict=True)}
        if cost_of(sizes) > limit:
            continue
        loss = 0.0
        for entry, size in zip(found, picked, strict=True):
            gone = sizes.get((entry.owner, "branch")) == 0 and entry.group != "branch"
            loss += 0.0 if gone else entry.loss(size)
        best = min(best, loss)
    return best


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.95, 0.85, 0.75])
def test_equals_brute_force(seed: int, share: float) -> None:
    found = candidates(seed)
    cost_of = cost_function(ANATOMY, "macs")
    limit = share * cost_of({})
    least = cost_of({(entry.owner, entry.group): entry.sizes[0] for entry in found})
    if least > limit:
        pytest.skip("out of reach with these menus")
    sizes = solve_knapsack(ANATOMY, found, cost_of, limit)
    assert cost_of(sizes) <= limit
    loss = 0.0
    for entry in found:
        gone = sizes.get((entry.owner, "branch")) == 0 and entry.group != "branch"
        loss += 0.0 if gone else entry.loss(sizes[entry.key])
    assert loss <= brute_force(found, limit) + 1e-3


def test_out_of_reach_names_what_is() -> None:
    with pytest.raises(UserError, match="smallest reachable"):
        solve_knapsack(ANATOMY, candidates(0, drop=False), cost_function(ANATOMY, "macs"), 1.0)


def test_a_block_goes_when_that_is_cheaper_than_its_branches() -> None:
    block = ANATOMY.blocks[0]
    found = [
        Candidates(owner=name, group="branch", sizes=(0, 1), losses=(5.0, 0.0))
        for other in ANATOMY.blocks
        for name in other.branches
    ]
    found.append(Candidates(owner=block.id, group="block", sizes=(0, 1), losses=(1.0, 0.0)))
    cost_of = cost_function(ANATOMY, "macs")
    gone = {(block.id, "block"): 0}
    sizes = solve_knapsack(ANATOMY, found, cost_of, cost_of(gone))
    assert sizes[block.id, "block"] == 0
    assert all(sizes[name, "branch"] == 1 for other in ANATOMY.blocks for name in other.branches)
