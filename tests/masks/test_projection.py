"""Budgets are met from below, within half a percent, alignment included."""

import itertools
from collections.abc import Iterator, Mapping
from functools import cache

import pytest
import timm
import torch
from torch import Tensor, nn

from secateur.allocation.candidates import Limits
from secateur.errors import UserError
from secateur.masks.gates import Gate, count_above, keep
from secateur.masks.granularity import gates_of, granularities
from secateur.masks.masks import masks_of
from secateur.masks.pricing import Pricing, exact_cost, left_of_masks
from secateur.masks.projection import check_reachable, least_cost, project
from secateur.masks.removal.remove import remove
from secateur.measurement.counting import counted
from secateur.models.family import read
from secateur.zoo import digits_vit
from tests.masks.cases import FREE, pricing_of, random_margins, scope_of

TEN = [0.97, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
MODEL = digits_vit()
ANATOMY = read(MODEL)
STRATEGIES = granularities.names()


@pytest.mark.parametrize("share", TEN)
@pytest.mark.parametrize("unit", ["params", "macs"])
def test_ten_budgets_are_hit(share: float, unit: str) -> None:
    """The default sharing, and the one for small budgets: at most half a percent below."""
    for name in ("common_count", "mixed"):
        gates = gates_of(granularities.get(name), scope_of(MODEL, ANATOMY, width=name == "mixed"))
        pricing = pricing_of(ANATOMY, share, unit)
        kept = project(gates, random_margins(gates), pricing)
        smaller, _ = remove(MODEL, masks_of(gates, kept), FREE)
        found = counted(smaller, ANATOMY.input_size)
        real = found.params if unit == "params" else found.macs
        assert real <= pricing.limit
        assert pricing.limit - real <= 0.005 * pricing.dense


@pytest.mark.parametrize("share", TEN[:-1])
@pytest.mark.parametrize("sharing", STRATEGIES)
def test_coarse_units_leave_no_gap(sharing: str, share: float) -> None:
    """Scores that put whole layers and heads last: each is many times half a percent."""
    anatomy = read(tiny())
    gates = gates_of(granularities.get(sharing), scope_of(tiny(), anatomy))
    margins = random_margins(gates)
    for gate in gates:
        if gate.group in ("branch", "heads"):
            margins[gate.name] -= 10
    pricing = pricing_of(anatomy, share)
    kept = project(gates, margins, pricing)
    real = exact_cost(pricing, left_of_masks(pricing, masks_of(gates, kept)))
    assert 0 <= pricing.limit - real <= 0.005 * pricing.dense


@cache
def tiny() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32)


@pytest.mark.parametrize("share", [0.85, 0.6, 0.35])
@pytest.mark.parametrize("sharing", STRATEGIES)
@pytest.mark.parametrize("width", [False, True])
def test_no_strategy_exceeds_its_budget(sharing: str, share: float, width: bool) -> None:
    gates = gates_of(granularities.get(sharing), scope_of(MODEL, ANATOMY, width=width))
    pricing = pricing_of(ANATOMY, share)
    kept = project(gates, random_margins(gates, seed=3), pricing)
    smaller, plan = remove(MODEL, masks_of(gates, kept), FREE)
    real = sum(p.numel() for p in smaller.parameters())
    assert real == ANATOMY.cost(plan.shapes, plan.widths).params <= pricing.limit
    coarsest = max(_steps(gates, kept, pricing))
    assert pricing.limit - real <= coarsest


def _steps(gates: list[Gate], kept: Mapping[str, Tensor], pricing: Pricing) -> Iterator[float]:
    """What one more unit of each gate would cost."""
    now = exact_cost(pricing, left_of_masks(pricing, masks_of(gates, kept)))
    for gate in gates:
        more = kept[gate.name].clone()
        rows = more if gate.rule == "equal" else more.view(1, -1)
        for row in rows:
            closed = (~row).nonzero()
            if len(closed):
                row[closed[0]] = True
        masks = masks_of(gates, {**kept, gate.name: more})
        yield exact_cost(pricing, left_of_masks(pricing, masks)) - now


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("sharing", ["common_count", "independent", "uniform"])
def test_alignment_is_part_of_the_budget(sharing: str, share: float) -> None:
    limits = Limits(align={"qk": 4, "vo": 4, "hidden": 16}, minimum={"qk": 4, "vo": 4})
    gates = gates_of(granularities.get(sharing), scope_of(MODEL, ANATOMY, limits))
    pricing = pricing_of(ANATOMY, share, limits=limits)
    kept = project(gates, random_margins(gates), pricing)
    _, plan = remove(MODEL, masks_of(gates, kept), limits)
    assert ANATOMY.cost(plan.shapes, plan.widths).params <= pricing.limit
    for branch in ANATOMY.branches:
        shape = plan.shapes[branch.id]
        assert shape is not None
        for group in ("qk", "vo") if branch.kind == "attention" else ("hidden",):
            assert shape.size(group) % limits.align[group] == 0


@pytest.mark.parametrize("sharing", STRATEGIES)
def test_costs_fall_with_the_threshold(sharing: str) -> None:
    gates = gates_of(granularities.get(sharing), scope_of(MODEL, ANATOMY))
    margins, pricing = random_margins(gates, seed=5), pricing_of(ANATOMY, 1.0)
    costs = []
    for threshold in torch.linspace(-6, 6, 25).tolist():
        counts = {g.name: count_above(g, margins[g.name], threshold) for g in gates}
        kept = {g.name: keep(g, margins[g.name], counts[g.name]) for g in gates}
        costs.append(exact_cost(pricing, left_of_masks(pricing, masks_of(gates, kept))))
    assert costs[0] == pricing.dense
    assert all(more >= less for more, less in itertools.pairwise(costs))
    assert costs[-1] < 0.2 * pricing.dense


@pytest.mark.parametrize("sharing", ["common_count", "per_head"])
def test_equal_scores_still_meet_the_budget(sharing: str) -> None:
    gates = gates_of(granularities.get(sharing), scope_of(MODEL, ANATOMY))
    pricing = pricing_of(ANATOMY, 0.5)
    kept = project(gates, {g.name: torch.ones(g.rows, g.units) for g in gates}, pricing)
    real = exact_cost(pricing, left_of_masks(pricing, masks_of(gates, kept)))
    assert 0.495 * pricing.dense <= real <= pricing.limit


def test_the_best_units_stay() -> None:
    gates = gates_of(granularities.get("per_head"), scope_of(MODEL, ANATOMY))
    margins = random_margins(gates)
    kept = project(gates, margins, pricing_of(ANATOMY, 0.5))
    assert any(not bool(mask.all()) for mask in kept.values())
    for name, mask in kept.items():
        lost = margins[name][~mask]
        assert lost.numel() == 0 or margins[name][mask].min() > lost.max()


def test_all_stays_when_the_budget_is_large_enough() -> None:
    gates = gates_of(granularities.get("mixed"), scope_of(MODEL, ANATOMY))
    kept = project(gates, random_margins(gates), pricing_of(ANATOMY, 1.0))
    assert all(bool(mask.all()) for mask in kept.values())


def test_budgets_out_of_reach_are_refused_with_the_smallest() -> None:
    gates = gates_of(granularities.get("per_head"), scope_of(MODEL, ANATOMY))
    pricing = pricing_of(ANATOMY, 0.05)
    least = least_cost(gates, pricing)
    share = f"{100 * least / pricing.dense:.1f}%"
    with pytest.raises(UserError, match=rf"'5% params' is out of reach: .* {share} params"):
        check_reachable(gates, pricing, "5% params")
    check_reachable(gates, pricing_of(ANATOMY, least / pricing.dense + 1e-9), "whatever")
