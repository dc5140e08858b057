"""What is removed computes what was masked, for every sharing on every host."""

import pytest
import torch
from torch import nn

from secateur.allocation.candidates import Limits
from secateur.masks.gates import allowed, keep
from secateur.masks.masks import masks_of, plan_of_masks
from secateur.masks.pricing import left_of_masks, masked_cost
from secateur.masks.removal.remove import remove
from secateur.models.family import read
from tests.contract.cases import fused_
from tests.hosts import anatomy_of, build, images_for
from tests.masks.cases import CASES, FREE, WIDE, bank_of, gates_for, pricing_of, random_kept

ALIGNED = Limits(align={"qk": 2, "vo": 4, "hidden": 8}, minimum={"qk": 4, "vo": 1, "hidden": 8})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "sharing", "width"), WIDE)
@torch.no_grad()
def test_removed_equals_masked(name: str, sharing: str, width: bool, seed: int) -> None:
    model, gates = build(name), gates_for(name, sharing, width=width)
    limits = FREE if seed == 0 else ALIGNED
    x = images_for(model)
    bank = bank_of(gates)
    bank.freeze(random_kept(gates, seed))
    dense = model(x)
    with bank.attached(model):
        masked = model(x)
    assert torch.equal(model(x), dense), "gates leave traces"
    assert not torch.allclose(masked, dense, atol=1e-3), "the masks change nothing"
    smaller, plan = remove(model, bank.masks(), limits)
    for fused in (True, False):
        fused_(smaller, fused)
        assert torch.allclose(smaller(x), masked, rtol=0, atol=1e-5)
    assert torch.equal(model(x), dense), "the model given was changed"
    after = read(smaller)
    assert after.shapes == {b: shape for b, shape in plan.shapes.items() if shape is not None}
    assert after.cost().params == sum(p.numel() for p in smaller.parameters())
    assert after.cost() == anatomy_of(name).cost(plan.shapes, plan.widths)
    assert width is (after.width < anatomy_of(name).width)


@pytest.mark.parametrize(("name", "sharing", "width"), WIDE)
@torch.no_grad()
def test_extremes_are_finite_and_exact(name: str, sharing: str, width: bool) -> None:
    model, gates = build(name), gates_for(name, sharing, width=width)
    x = images_for(model)
    for count in (0, 10**9):
        margins = {g.name: torch.zeros(g.rows, g.units) for g in gates}
        kept = {g.name: keep(g, margins[g.name], allowed(g, count)) for g in gates}
        bank = bank_of(gates)
        bank.freeze(kept)
        with bank.attached(model):
            masked = model(x)
        assert masked.isfinite().all()
        smaller, plan = remove(model, bank.masks(), FREE)
        assert torch.allclose(smaller(x), masked, rtol=0, atol=1e-5)
        if count:
            assert plan.shapes == anatomy_of(name).shapes and not plan.units


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "sharing"), [("vit", s) for n, s in CASES if n == "vit"])
def test_only_independent_masks_claim_more_than_is_removed(
    name: str, sharing: str, seed: int
) -> None:
    anatomy = anatomy_of(name)
    gates = gates_for(name, sharing, width=seed == 2)
    masks = masks_of(gates, random_kept(gates, seed))
    plan = plan_of_masks(anatomy, masks, FREE)
    masked, left = masked_cost(anatomy, masks), anatomy.cost(plan.shapes, plan.widths)
    if sharing == "independent":
        assert masked.params < left.params and masked.macs < left.macs
    else:
        assert masked == left
    assert left_of_masks(pricing_of(anatomy, 1.0), masks).shapes == plan.shapes


def test_dead_heads_and_heads_without_queries_are_not_the_same() -> None:
    """Zero logits average the values; a head without values gives nothing."""
    model = build("vit")
    gates = gates_for("vit", "independent")
    everything = {g.name: torch.ones(g.rows, g.units, dtype=torch.bool) for g in gates}
    no_queries = {n: m.clone() for n, m in everything.items()}
    no_queries["blocks.0.attn.q"][1] = False
    no_values = {n: m.clone() for n, m in everything.items()}
    no_values["blocks.0.attn.v"][1] = False
    plan = plan_of_masks(anatomy_of("vit"), masks_of(gates, no_queries), FREE)
    assert plan.shapes["blocks.0.attn"].size("heads") == 4
    plan = plan_of_masks(anatomy_of("vit"), masks_of(gates, no_values), FREE)
    assert plan.shapes["blocks.0.attn"].size("heads") == 3
    x = images_for(model)
    outputs = []
    with torch.no_grad():
        for kept in (no_queries, no_values):
            bank = bank_of(gates)
            bank.freeze(kept)
            with bank.attached(model):
                masked = model(x)
            outputs.append(remove(model, bank.masks(), FREE)[0](x))
            assert torch.allclose(outputs[-1], masked, rtol=0, atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


def test_outputs_in_front_of_a_batch_norm_have_no_masks() -> None:
    """Writers of zero would leave the norm's constant, so masked would not be removed."""
    for name in ("efficientformer", "efficientformer_grids"):
        model = build(name)
        behind = {
            branch.id
            for branch in anatomy_of(name).branches
            if any(isinstance(m, nn.BatchNorm2d) for m in model.get_submodule(branch.id).modules())
        }
        gated = {act.branch for g in gates_for(name, "independent") for act in g.acts
                 if act.site == "update"}  # fmt: skip
        assert behind and gated == {b.id for b in anatomy_of(name).branches} - behind
