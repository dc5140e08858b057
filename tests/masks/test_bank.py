"""Gates act as hooks, carry gradients to their scores, and price what they keep."""

import pytest
import torch
from torch import nn

from secateur.allocation.candidates import Limits
from secateur.errors import UserError
from secateur.masks.bank import GateBank
from secateur.masks.controller import Controller, ControllerSettings
from secateur.masks.estimator import estimators
from secateur.masks.granularity import gates_of, granularities
from secateur.masks.masks import masks_of
from secateur.masks.pricing import exact_cost, left_of_masks, unit_prices
from tests.hosts import anatomy_of, build, images_for, shared
from tests.masks.cases import bank_of, gates_for, pricing_of, random_kept, scope_of

FORMS = estimators.names()


def test_the_forms_and_strategies_that_are_promised() -> None:
    assert {"straight_through", "hard_concrete", "threshold", "pit"} <= set(FORMS)
    assert {
        "independent", "qkv_tied", "per_head", "shared_heads", "common_count", "per_block",
        "uniform", "mixed",
    } <= set(granularities.names())  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'common_count'"):
        granularities.get("common_counts")


@pytest.mark.parametrize("form", FORMS)
def test_every_unit_begins_open_and_the_better_ones_higher(form: str) -> None:
    gates = gates_for("vit", "common_count")
    bank = bank_of(gates, form)
    assert all(bool(kept.all()) for kept in bank.kept().values())
    worth = torch.linspace(-1, 1, 8)[None]
    margin = estimators.get(form).margin(estimators.get(form).start(worth))
    assert bool((margin.diff() > 0).all()) and float(margin.min()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_score(form: str) -> None:
    model, gates = build("vit").train(), gates_for("vit", "mixed")
    bank = bank_of(gates, form)
    x = images_for(model)
    torch.manual_seed(0)
    with bank.attached(model):
        for _ in range(64):  # a draw of the stochastic form may be flat
            model(x).square().mean().backward()
    for number in range(len(gates)):
        for name, score in bank.scores(number).items():
            assert score.grad is not None and bool((score.grad != 0).any()), (number, name)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_uses_hard_masks(form: str) -> None:
    model, gates = build("vit"), gates_for("vit", "common_count")
    bank = bank_of(gates, form)
    x = images_for(model)
    with torch.no_grad():
        dense = model(x)
        with bank.attached(model):
            assert torch.equal(model(x), dense)


@pytest.mark.parametrize("form", FORMS)
def test_training_on_price_alone_closes_the_gates(form: str) -> None:
    gates = gates_for("vit", "per_head")
    bank = bank_of(gates, form)
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.1)
    for _ in range(100):
        kept = bank.kept()
        total = sum((price.sum() for price in bank.prices(kept).values()), torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        bank.clamp_()
    for gate, kept_RU in zip(gates, bank.kept().values(), strict=True):
        assert int(kept_RU.sum()) == gate.minimum


@pytest.mark.parametrize("sharing", ["common_count", "per_head", "mixed", "shared_heads"])
@pytest.mark.parametrize("unit", ["params", "macs"])
def test_prices_are_differences_of_the_counted_cost(sharing: str, unit: str) -> None:
    """Closing one open unit of a gate of one branch saves its price."""
    anatomy, gates = anatomy_of("vit"), gates_for("vit", sharing, width=True)
    pricing = pricing_of(anatomy, 0.5, unit)
    kept = random_kept(gates, seed=4)
    masks = masks_of(gates, kept)
    shapes = left_of_masks(pricing, masks)
    prices = unit_prices(pricing, gates, masks, shapes)
    now = exact_cost(pricing, shapes)
    checked = 0
    for gate in gates:
        mask = kept[gate.name]
        if int(mask.sum()) <= gate.rows * max(gate.minimum, 1):
            continue
        fewer = mask.clone()
        for row in fewer if gate.rule == "equal" else fewer.view(1, -1):
            row[int(row.nonzero()[0])] = False
        closed = mask & ~fewer
        after = left_of_masks(pricing, masks_of(gates, kept | {gate.name: fewer}))
        saved = (now - exact_cost(pricing, after)) / pricing.dense
        assert float(prices[gate.name][closed].sum()) == pytest.approx(saved, rel=1e-5, abs=1e-9)
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", ["vit", "vit_swiglu", "vit_qk_norm", "vit_post_norm", "deit3"])
def test_refused_groups_have_no_gates(name: str) -> None:
    anatomy = anatomy_of(name)
    for sharing in granularities.names():
        try:
            gates = gates_of(granularities.get(sharing), scope_of(shared(name), anatomy))
        except UserError:
            continue
        for act in (act for gate in gates for act in gate.acts):
            group = {"rows": "branch"}.get(act.takes, act.takes)
            assert group == "branch" or group in anatomy.branch(act.branch).groups
            if act.takes == "rows":
                assert "post_norm" not in name


def test_protected_branches_have_no_gates() -> None:
    limits = Limits(align={}, minimum={}, protect=("blocks.0", "blocks.1.mlp"))
    scope = scope_of(shared("vit"), anatomy_of("vit"), limits)
    gates = gates_of(granularities.get("mixed"), scope)
    acted = {act.branch for gate in gates for act in gate.acts}
    assert acted == {"blocks.1.attn", "blocks.2.attn", "blocks.2.mlp"}
    nothing = Limits(align={}, minimum={}, protect=("blocks.0", "blocks.1", "blocks.2"))
    with pytest.raises(UserError, match="finds nothing to gate"):
        gates_of(granularities.get("mixed"), scope_of(shared("vit"), anatomy_of("vit"), nothing))


def test_widths_across_blocks_must_agree() -> None:
    model = build("vit")
    model.blocks[0].mlp.fc1 = nn.Linear(32, 48)
    model.blocks[0].mlp.fc2 = nn.Linear(48, 32)
    from secateur.models.family import read

    with pytest.raises(UserError, match="several sizes"):
        gates_of(granularities.get("uniform"), scope_of(model, read(model)))


def test_scores_and_their_state_survive() -> None:
    gates = gates_for("vit", "common_count")
    bank, other = bank_of(gates, "threshold"), bank_of(gates, "threshold")
    with torch.no_grad():
        for p in bank.parameters():
            p.sub_(torch.rand_like(p) * 2)
    other.load_state_dict(bank.state_dict())
    assert isinstance(other, GateBank)
    kept = bank.kept()
    assert all(torch.equal(mask, kept[name]) for name, mask in other.kept().items())
    assert not all(bool(mask.all()) for mask in kept.values())


def test_the_controller_pushes_while_too_large_and_lets_go_below() -> None:
    control = Controller(budget=0.3, settings=ControllerSettings())
    assert control.target() == 1.0
    for step in range(1, 101):
        control.advance_(1.0, step / 100)
    assert control.target() == pytest.approx(0.3)
    pressure = control.lam
    assert 0 < pressure <= control.settings.largest
    cost = torch.tensor(0.5, requires_grad=True)
    control.penalty(cost).backward()
    assert float(cost.grad) == pytest.approx(pressure + control.settings.damping * 0.2, rel=1e-5)
    for _ in range(60):
        control.advance_(0.2, 1.0)
    assert control.lam < 0.01 * pressure
