"""When drops are enough and when they are too many."""

from collections import Counter

import pytest

from secateur.allocation.budget import DropKind, parse_budget
from secateur.allocation.candidates import Limits, block_candidates, drop_candidates
from secateur.allocation.costs import cost_function
from secateur.allocation.quota import Quota, Unit, quota, units_of
from secateur.errors import UserError
from tests.hosts import anatomy_of


def unit(name: str, kind: DropKind) -> Unit:
    group = "block" if kind == "block" else "branch"
    return Unit(key=(name, group), kind=kind, branches=frozenset({name}))


A1, A2 = unit("a1", "attention"), unit("a2", "attention")
M1, M2 = unit("m1", "mlp"), unit("m2", "mlp")


def test_layers_of_either_kind_fill_what_no_kind_asked_for() -> None:
    wanted = Quota(counts=Counter({"attention": 1, "layer": 1}))
    assert wanted.allows([A1]) and wanted.allows([M1]) and wanted.allows([A1, A2])
    assert not wanted.allows([M1, M2]) and not wanted.allows([A1, A2, M1])
    assert wanted.met([A1, M1]) and wanted.met([A1, A2])
    assert not wanted.met([A1]) and not wanted.met([M1, M2])


def test_blocks_are_counted_apart() -> None:
    wanted = Quota(counts=Counter({"block": 1}))
    assert not wanted.allows([A1]) and wanted.met([unit("b", "block")])


def test_costs_allow_everything_and_are_met_at_their_limit() -> None:
    anatomy = anatomy_of("vit")
    cost_of = cost_function(anatomy, "macs")
    one = units_of(anatomy, [drop_candidates("blocks.1.mlp", "branch", 0.0, Limits())])
    limit = float(anatomy.cost().macs - anatomy.branch("blocks.1.mlp").cost(None).macs)
    assert Quota(counts=Counter(), cost_of=cost_of, limit=limit).met([])
    less = cost_of({("blocks.1.mlp", "branch"): 0})
    exact = Quota(counts=Counter(), cost_of=cost_of, limit=less)
    assert exact.allows([A1, A2]) and exact.met(one) and not exact.met([])


def test_units_are_what_menus_let_go() -> None:
    anatomy = anatomy_of("vit")
    kept = Limits(protect=("blocks.0",))
    candidates = [drop_candidates(branch.id, "branch", 0.0, kept) for branch in anatomy.branches]
    candidates += [block_candidates(block, 0.0, kept) for block in anatomy.blocks]
    found = {u.key[0]: u for u in units_of(anatomy, candidates)}
    assert "blocks.0.attn" not in found and "blocks.0" not in found
    assert found["blocks.1.attn"].kind == "attention"
    assert found["blocks.2"].branches == {"blocks.2.attn", "blocks.2.mlp"}


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        ("drop 2 attention, drop 1 mlp", {"attention": 2, "mlp": 1}),
        ("drop 50% layers", {"layer": 2}),
        ("drop 25% attention", {"attention": 1}),
    ],
)
def test_counts_and_shares(budget: str, counts: dict[DropKind, int]) -> None:
    assert quota([A1, A2, M1, M2], parse_budget(budget), None, 0.0).counts == Counter(counts)


@pytest.mark.parametrize(
    ("budget", "words"),
    [("50% hidden", "cannot make groups narrower"), ("drop 3 mlp", "the model has 2 that are not")],
)
def test_what_cannot_be_met_is_refused(budget: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        quota([A1, A2, M1, M2], parse_budget(budget), None, 0.0)
