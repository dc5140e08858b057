"""A pruned model computes what the dense one computes with the removed units held fixed."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan, Units
from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.outputs import outputs_of
from secateur.models.types import Branch, GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Statistics, observe
from secateur.surgery.cut import cut_
from secateur.surgery.replace import mean_update
from tests.contract.cases import (
    CASES,
    DROP_CASES,
    NARROWER,
    UNIT_CASES,
    fused_,
    masked,
    offered,
    plan_for,
)
from tests.hosts import HOSTS, anatomy_of, build, images_for, shared

TOLERANCE = 1e-5
MEAN_EVIDENCE = ("hidden_energies", "context_energies", "update_mean")


def cut(model: nn.Module, plan: Plan, statistics: Statistics | None = None) -> nn.Module:
    """A pruned copy, with repair `mean` where there is statistics."""
    smaller = copy.deepcopy(model)
    cut_(smaller, plan, statistics, "none" if statistics is None else "mean")
    return smaller


@pytest.mark.parametrize("name", HOSTS)
def test_keeping_everything_is_bit_identical(name: str) -> None:
    model = build(name)
    x = images_for(model)
    before = outputs_of(model(x))
    family = family_of(model)
    for branch in read(model).branches:
        family.assign_(model, branch, family.weights(model, branch))
    assert torch.equal(outputs_of(model(x)), before)
    cut_(model, Plan(shapes=read(model).shapes), None, "none")
    assert torch.equal(outputs_of(model(x)), before)
    assert type(model) is type(build(name))


@pytest.mark.parametrize(("name", "group"), CASES)
@torch.no_grad()
def test_cut_equals_masked(name: str, group: str) -> None:
    model = build(name)
    plan = plan_for(anatomy_of(name), group)
    x = images_for(model)
    dense = outputs_of(model(x))
    settings = [(True, False), (False, True)]
    expected = []
    for fused, training in settings:
        fused_(model.train(training), fused)
        with masked(model, plan):
            expected.append(as_ever(model, x))
    assert not torch.allclose(dense, expected[0], atol=1e-3), "the masks change nothing"
    cut_(model, plan, None, "none")
    assert read(model).shapes == {id: s for id, s in plan.shapes.items() if s is not None}
    assert all(module.training for module in model.modules())
    for (fused, training), wanted in zip(settings, expected, strict=True):
        fused_(model.train(training), fused)
        assert torch.allclose(as_ever(model, x), wanted, rtol=0, atol=TOLERANCE)


def as_ever(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs; in train mode batch norms move their statistics, which are put back."""
    before = copy.deepcopy(model.state_dict())
    outputs: Tensor = outputs_of(model(x))
    model.load_state_dict(before)
    return outputs


@pytest.mark.parametrize("fused", [True, False])
def test_the_choice_of_kernel_survives_the_cut(fused: bool) -> None:
    model = build("vit")
    fused_(model, fused)
    smaller = cut(model, plan_for(anatomy_of("vit"), "qk"))
    assert all(block.attn.fused_attn is fused for block in smaller.blocks)


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_pruned_models_can_be_pruned_again(name: str) -> None:
    model = build(name)
    cut_(model, plan_for(anatomy_of(name), "everything", seed=2), None, "none")
    x = images_for(model)
    again = ("everything and width", "everything", "last blocks")
    for group in again if offered(anatomy_of(name), "width") else again[1:]:
        anatomy = read(model)
        plan = plan_for(anatomy, group, seed=3)
        with masked(model, plan):
            expected = outputs_of(model(x))
        cut_(model, plan, None, "none")
        assert read(model).cost() == anatomy.cost(plan.shapes, plan.widths)
        assert torch.allclose(outputs_of(model(x)), expected, rtol=0, atol=TOLERANCE)


def means(statistics: Statistics, branch: Branch, site: str) -> Tensor | None:
    """What the repair `mean` leaves in place of removed units; no such thing for queries."""
    if site in ("query", "key"):
        return None
    if site == "update":
        return mean_update(statistics, branch)
    sums = statistics.of(f"{site}_energies", branch.id)
    mean_U = sums["sum"] / sums["count"]
    return mean_U if site == "hidden" else mean_U.unflatten(0, (branch.shape.size("heads"), -1))


STILL_CASES = [(name, group) for name, group in CASES if group not in NARROWER]
"""What the repair `mean` does to a stream is told in test_width.py."""


@pytest.mark.parametrize(("name", "group"), STILL_CASES)
@torch.no_grad()
def test_repair_by_means_equals_means_in_place_of_units(name: str, group: str) -> None:
    model = build(name)
    plan = plan_for(anatomy_of(name), group, seed=1)
    statistics = observe(model, as_batches(images_for(model, 8, seed=3), 4), MEAN_EVIDENCE)
    smaller = cut(model, plan, statistics)
    x = images_for(model)
    with masked(model, plan, lambda branch, site: means(statistics, branch, site)):
        expected = outputs_of(model(x))
    assert torch.allclose(outputs_of(smaller(x)), expected, rtol=0, atol=TOLERANCE)


SCALED = [
    (name, group)
    for name, group in DROP_CASES
    if family_of(shared(name)).writer_scale(shared(name), anatomy_of(name).branches[0]) is not None
]


@pytest.mark.parametrize(("name", "group"), SCALED)
@torch.no_grad()
def test_means_of_dropped_layers_pass_through_scales_of_zero(name: str, group: str) -> None:
    model = build(name)
    family = family_of(model)
    for branch in read(model).branches:
        scale = family.writer_scale(model, branch)
        assert scale is not None
        scale[::3] = 0.0
        scale[1] = 1e-30
    plan = plan_for(anatomy_of(name), group)
    statistics = observe(model, as_batches(images_for(model, 8, seed=3), 4), MEAN_EVIDENCE)
    smaller = cut(model, plan, statistics)
    x = images_for(model)
    with masked(model, plan, lambda branch, site: means(statistics, branch, site)):
        expected = outputs_of(model(x))
    assert torch.allclose(outputs_of(smaller(x)), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "group"), UNIT_CASES)
def test_writers_keep_their_bias_and_gain_the_constants(name: str, group: str) -> None:
    model = build(name)
    plan = plan_for(anatomy_of(name), group)
    statistics = observe(model, as_batches(images_for(model), 2), MEAN_EVIDENCE)
    bare, repaired = cut(model, plan), cut(model, plan, statistics)
    for branch in anatomy_of(name).branches:
        old, without, new = (family_of(m).weights(m, branch) for m in (model, bare, repaired))
        assert _equal(_bias(without), _bias(old))
        constant = _removed_constant(old, plan.units.get(branch.id, {}), statistics, branch)
        expected = constant if _bias(old) is None else _bias(old) + constant
        found = torch.zeros(branch.width) if _bias(new) is None else _bias(new)
        assert torch.allclose(found, expected, atol=1e-5)
        if isinstance(old, AttentionWeights) and isinstance(new, AttentionWeights):
            assert new.scale == old.scale == old.shape.qk**-0.5


def _bias(weights: BranchWeights) -> Tensor | None:
    return weights.ob_D if isinstance(weights, AttentionWeights) else weights.b2_D


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _removed_constant(
    weights: BranchWeights, units: dict[GroupName, Units], statistics: Statistics, branch: Branch
) -> Tensor:
    """W_P mu_P, from the definition: the writer applied to the means of what it loses."""
    constant_D = torch.zeros(branch.width)
    if isinstance(weights, MlpWeights):
        mean_F = means(statistics, branch, "hidden")
        assert mean_F is not None
        for j in set(range(mean_F.numel())) - set(units.get("hidden", range(mean_F.numel()))):
            constant_D = constant_D + weights.w2_DF[:, j] * mean_F[j].float()
        return constant_D
    mean_HV = means(statistics, branch, "context")
    assert mean_HV is not None
    heads, dims = mean_HV.shape
    for h, v in itertools.product(range(heads), range(dims)):
        head_stays = h in units.get("heads", range(heads))
        if not head_stays or ("vo" in units and v not in units["vo"][h]):
            constant_D = constant_D + weights.o_DHV[:, h, v] * mean_HV[h, v].float()
    return constant_D
