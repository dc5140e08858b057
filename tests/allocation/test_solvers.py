"""Properties of every solver on random candidates of small models."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secateur.allocation.candidates import (
    Limits,
    block_candidates,
    drop_candidates,
    unit_candidates,
)
from secateur.allocation.knapsack import solve_knapsack
from secateur.allocation.solvers import (
    CostOf,
    cost_function,
    solve_ranking,
    solve_uniform,
    uniform_sizes,
)
from secateur.allocation.types import Candidates, Sizes, dense_sizes
from secateur.errors import UserError
from secateur.models.types import Anatomy, GroupName
from tests.hosts import anatomy_of

Solve = Callable[[Anatomy, list[Candidates], CostOf, float], Sizes]
SOLVERS: dict[str, Solve] = {
    "uniform": solve_uniform,
    "ranking": lambda *problem: solve_ranking(*problem, per_cost=False),
    "ranking per cost": lambda *problem: solve_ranking(*problem, per_cost=True),
    "knapsack": solve_knapsack,
}
UNIT_GROUPS: tuple[GroupName, ...] = ("hidden", "heads", "qk", "vo")


def random_menus(
    anatomy: Anatomy, groups: frozenset[GroupName], step: int, seed: int
) -> list[Candidates]:
    """Candidates of some groups with scores over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    limits = Limits(
        align={"hidden": 8 * step, "qk": step, "vo": step, "heads": 1},
        minimum={"hidden": 8 * step, "qk": step, "vo": step, "heads": 1},
        protect=("blocks.0.mlp",) if seed % 3 == 0 else (),
    )

    def scores(*size: int) -> torch.Tensor:
        return torch.exp(2 * torch.randn(size, generator=generator))

    candidates = []
    for branch in anatomy.branches:
        for group in UNIT_GROUPS:
            if group in groups and group in branch.groups:
                units = branch.shape.size(group)
                per_head = group in ("qk", "vo")
                score = scores(branch.shape.size("heads"), units) if per_head else scores(units)
                candidates.append(unit_candidates(branch, group, score, limits))
        if "branch" in groups:
            candidates.append(drop_candidates(branch.id, "branch", float(scores(1)), limits))
    if "block" in groups:
        candidates += [
            block_candidates(block, float(scores(1)), limits) for block in anatomy.blocks
        ]
    return candidates


PROBLEMS = {
    "host": st.sampled_from(["vit", "vit_swiglu", "vit_no_biases", "clip"]),
    "groups": st.frozensets(st.sampled_from([*UNIT_GROUPS, "branch", "block"]), min_size=1),
    "step": st.sampled_from([1, 2, 4]),
    "seed": st.integers(0, 10_000),
    "unit": st.sampled_from(["macs", "params"]),
    "room": st.floats(0, 1),
}


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(**PROBLEMS)
def test_budgets_are_met_from_below_and_no_step_more_would_fit(
    solver: str,
    host: str,
    groups: frozenset[GroupName],
    step: int,
    seed: int,
    unit: str,
    room: float,
) -> None:
    anatomy = anatomy_of(host)
    candidates = random_menus(anatomy, groups, step, seed)
    cost_of = cost_function(anatomy, unit)
    least = cost_of({entry.key: entry.sizes[0] for entry in candidates})
    limit = least + room * (cost_of(dense_sizes(anatomy)) - least)
    sizes = SOLVERS[solver](anatomy, candidates, cost_of, limit)
    assert set(sizes) == {entry.key for entry in candidates}
    assert all(sizes[entry.key] in entry.sizes for entry in candidates)
    assert cost_of(sizes) <= limit
    for entry in candidates:
        position = entry.sizes.index(sizes[entry.key])
        if position + 1 < len(entry.sizes):
            assert cost_of({**sizes, entry.key: entry.sizes[position + 1]}) > limit


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(**PROBLEMS)
def test_the_smallest_reachable_is_named_and_reached(
    solver: str,
    host: str,
    groups: frozenset[GroupName],
    step: int,
    seed: int,
    unit: str,
    room: float,
) -> None:
    anatomy = anatomy_of(host)
    candidates = random_menus(anatomy, groups, step, seed)
    cost_of = cost_function(anatomy, unit)
    least = cost_of({entry.key: entry.sizes[0] for entry in candidates})
    with pytest.raises(UserError, match="smallest reachable is") as error:
        SOLVERS[solver](anatomy, candidates, cost_of, room * (least - 1))
    named = re.search(r"reachable is ([\d,]+) \(([\d.]+) %", str(error.value))
    assert named is not None
    number = float(named[1].replace(",", ""))
    assert cost_of(SOLVERS[solver](anatomy, candidates, cost_of, number)) == number == least
    share = float(named[2]) / 100 * cost_of(dense_sizes(anatomy))
    assert cost_of(SOLVERS[solver](anatomy, candidates, cost_of, share)) <= share


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(**PROBLEMS)
def test_more_room_never_costs_more_than_a_step(
    solver: str,
    host: str,
    groups: frozenset[GroupName],
    step: int,
    seed: int,
    unit: str,
    room: float,
) -> None:
    anatomy = anatomy_of(host)
    candidates = random_menus(anatomy, groups, step, seed)
    cost_of = cost_function(anatomy, unit)
    dense = dense_sizes(anatomy)
    least, whole = cost_of({entry.key: entry.sizes[0] for entry in candidates}), cost_of(dense)
    assume(whole > least)
    limits = [least + room * share * (whole - least) for share in (0.5, 0.8, 1.0)]
    costs = [cost_of(SOLVERS[solver](anatomy, candidates, cost_of, limit)) for limit in limits]
    steps = [
        cost_of({**dense, m.key: large}) - cost_of({**dense, m.key: small})
        for m in candidates
        for small, large in zip(m.sizes, m.sizes[1:], strict=False)
    ]
    assert costs[1] >= costs[0] - max(steps) and costs[2] >= costs[1] - max(steps)
    assert (
        SOLVERS[solver](anatomy, candidates, cost_of, whole).items()
        >= {entry.key: entry.sizes[-1] for entry in candidates}.items()
    )


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(share=st.floats(0, 1), more=st.floats(0, 1), seed=st.integers(0, 1000))
def test_uniform_sizes_grow_with_the_share(share: float, more: float, seed: int) -> None:
    candidates = random_menus(anatomy_of("vit"), frozenset(UNIT_GROUPS), 2, seed)
    small, large = (uniform_sizes(candidates, s) for s in sorted((share, more)))
    assert all(small[key] <= large[key] for key in small)
    for entry in candidates:
        assert small[entry.key] <= max(min(share, more) * entry.sizes[-1] + 1e-6, entry.sizes[0])


def test_uniform_is_even_over_layers() -> None:
    anatomy = anatomy_of("vit")
    candidates = random_menus(anatomy, frozenset({"hidden"}), 1, seed=1)
    cost_of = cost_function(anatomy, "macs")
    half = cost_of({entry.key: 32 for entry in candidates})
    assert solve_uniform(anatomy, candidates, cost_of, half) == {
        entry.key: 32 for entry in candidates
    }
    more = solve_uniform(anatomy, candidates, cost_of, half * 1.05)
    assert max(more.values()) - min(more.values()) <= 8


def test_uniform_keeps_layers_while_widths_suffice() -> None:
    anatomy = anatomy_of("vit")
    candidates = random_menus(anatomy, frozenset({"hidden", "branch"}), 1, seed=1)
    cost_of = cost_function(anatomy, "macs")
    widths = [entry for entry in candidates if entry.group == "hidden"]
    least = cost_of({entry.key: entry.sizes[0] for entry in widths})
    kept = solve_uniform(anatomy, candidates, cost_of, least)
    assert all(size == 1 for (_, group), size in kept.items() if group == "branch")
    fewer = solve_uniform(anatomy, candidates, cost_of, 0.9 * least)
    assert any(size == 0 for (_, group), size in fewer.items() if group == "branch")


def two_layers(losses: tuple[tuple[float, ...], tuple[float, ...]]) -> list[Candidates]:
    ids = ("blocks.0.mlp", "blocks.1.mlp")
    return [
        Candidates(owner=id, group="hidden", sizes=(16, 32, 48, 64), losses=loss)
        for id, loss in zip(ids, losses, strict=True)
    ]


@pytest.mark.parametrize("solver", ["ranking", "ranking per cost", "knapsack"])
def test_the_cheaper_layer_is_cut_first(solver: str) -> None:
    anatomy = anatomy_of("vit")
    candidates = two_layers(((30.0, 20.0, 10.0, 0.0), (3.0, 2.0, 1.0, 0.0)))
    cost_of = cost_function(anatomy, "params")
    limit = cost_of({candidates[0].key: 64, candidates[1].key: 32})
    sizes = SOLVERS[solver](anatomy, candidates, cost_of, limit)
    assert sizes == {candidates[0].key: 64, candidates[1].key: 32}
    limit = cost_of({candidates[0].key: 48, candidates[1].key: 16})
    sizes = SOLVERS[solver](anatomy, candidates, cost_of, limit)
    assert sizes == {candidates[0].key: 48, candidates[1].key: 16}


@pytest.mark.parametrize("solver", ["ranking per cost", "knapsack"])
def test_a_dropped_layer_returns_narrower_where_that_fits_and_loses_less(solver: str) -> None:
    anatomy = anatomy_of("vit")
    cost_of = cost_function(anatomy, "macs")
    width = two_layers(((3.0, 2.0, 1.0, 0.0), (9.0, 8.0, 7.0, 0.0)))
    layers = [
        Candidates(owner=entry.owner, group="branch", sizes=(0, 1), losses=(loss, 0.0))
        for entry, loss in zip(width, (1.5, 90.0), strict=True)
    ]
    for kept, present in ((48, 1), (32, 0)):
        limit = cost_of({width[0].key: kept})
        sizes = SOLVERS[solver](anatomy, width + layers, cost_of, limit)
        assert sizes[layers[0].key] == present
        assert present == 0 or sizes[width[0].key] == kept
        assert sizes[width[1].key] == 64 and sizes[layers[1].key] == 1


def test_the_knapsack_is_never_worse_than_the_others() -> None:
    anatomy = anatomy_of("vit")
    cost_of = cost_function(anatomy, "macs")
    for seed in range(5):
        candidates = random_menus(anatomy, frozenset({"hidden", "vo", "branch"}), 2, seed)
        limit = 0.6 * cost_of(dense_sizes(anatomy))
        losses = {}
        for name, solve in SOLVERS.items():
            sizes = solve(anatomy, candidates, cost_of, limit)
            losses[name] = sum(entry.loss(sizes[entry.key]) for entry in candidates)
        assert losses["knapsack"] <= min(losses.values()) * (1 + 1e-3)
