"""Units that are exactly redundant (duplicated, dead, constant) are removed without loss."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan, Units
from secateur.data.batches import as_batches
from secateur.models.family import family_of, read
from secateur.models.outputs import outputs_of
from secateur.models.types import GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import observe
from secateur.surgery.cut import cut_, repair_needs
from secateur.surgery.repair import Repair
from secateur.verbs.prune import prune
from tests.contract.cases import UNIT_GROUPS, offered, plan_of_units
from tests.hosts import HOSTS, anatomy_of, build, images_for, shared

REPAIRS: dict[str, tuple[Repair, ...]] = {
    "dead": ("none", "least_squares"),
    "constant": ("mean", "least_squares"),
    "duplicated": ("least_squares",),
}


def spoiled(weights: BranchWeights, group: GroupName, how: str) -> BranchWeights | None:
    """The weights with the last half of a group's units redundant; None if there is no such way.

    Constant units need a bias, but for keys: these shift all logits of a row alike and are dead.
    """
    half = weights.shape.size(group) // 2
    if isinstance(weights, MlpWeights):
        if how == "constant" and weights.reader_biases_F[0] is None:
            return None
        change = {"dead": _dead, "constant": _no_input, "duplicated": _copied}[how]
        keep = _same if how == "constant" else change
        return replace(
            weights,
            readers_FD=tuple(change(w, half, 0) for w in weights.readers_FD),
            reader_biases_F=tuple(keep(b, half, 0) for b in weights.reader_biases_F),
            unit_FT=keep(weights.unit_FT, half, 0),
        )
    return _spoiled_attention(weights, group, how, half)


def _spoiled_attention(
    w: AttentionWeights, group: GroupName, how: str, half: int
) -> AttentionWeights | None:
    axis = 0 if group == "heads" else 1
    if group == "qk":
        if how == "duplicated":
            return _copied_queries(w, half, 1)
        if how == "constant":
            return replace(w, k_HKD=_no_input(w.k_HKD, half, 1))
        return replace(w, q_HKD=_dead(w.q_HKD, half, 1), qb_HK=_dead(w.qb_HK, half, 1))
    if how == "constant":
        return None if w.vb_HV is None else replace(w, v_HVD=_no_input(w.v_HVD, half, axis))
    if how == "dead":
        return replace(w, v_HVD=_dead(w.v_HVD, half, axis), vb_HV=_dead(w.vb_HV, half, axis))
    if group == "heads":
        w = _copied_queries(w, half, 0)
    return replace(w, v_HVD=_copied(w.v_HVD, half, axis), vb_HV=_copied(w.vb_HV, half, axis))


def _copied_queries(w: AttentionWeights, half: int, axis: int) -> AttentionWeights:
    return replace(
        w,
        q_HKD=_copied(w.q_HKD, half, axis),
        k_HKD=_copied(w.k_HKD, half, axis),
        qb_HK=_copied(w.qb_HK, half, axis),
        kb_HK=_copied(w.kb_HK, half, axis),
        table_HT=_copied(w.table_HT, half, 0) if axis == 0 else w.table_HT,
    )


def _same(t: Tensor | None, half: int, axis: int) -> Tensor | None:
    return t


def _dead(t: Tensor | None, half: int, axis: int) -> Tensor | None:
    if t is None:
        return None
    return torch.cat([t.narrow(axis, 0, half), 0 * t.narrow(axis, half, half)], axis)


_no_input = _dead


def _copied(t: Tensor | None, half: int, axis: int) -> Tensor | None:
    if t is None:
        return None
    return torch.cat([t.narrow(axis, 0, half), t.narrow(axis, 0, half)], axis)


def spoil_(model: nn.Module, group: GroupName, how: str) -> Plan | None:
    """Make half of a group's units redundant; return the plan that removes just these."""
    family, units = family_of(model), dict[str, dict[GroupName, Units]]()
    for branch in read(model).branches:
        if group not in branch.groups:
            continue
        new = spoiled(family.weights(model, branch), group, how)
        if new is None:
            return None
        family.assign_(model, branch, new)
        kept = tuple(range(branch.shape.size(group) // 2))
        per_head = group in ("qk", "vo")
        units[branch.id] = {group: (kept,) * branch.shape.size("heads") if per_head else kept}
    return plan_of_units(read(model), units)


def possible(name: str, group: GroupName, how: str) -> bool:
    """Whether units of a host can be redundant in this way."""
    model = shared(name)
    first = next(b for b in anatomy_of(name).branches if group in b.groups)
    return spoiled(family_of(model).weights(model, first), group, how) is not None


CASES = [
    (name, group, how)
    for name in HOSTS
    for group in UNIT_GROUPS
    for how in REPAIRS
    if offered(anatomy_of(name), group) and possible(name, group, how)
]


@pytest.mark.parametrize(("name", "group", "how"), CASES)
@torch.no_grad()
def test_redundant_units_go_without_loss(name: str, group: GroupName, how: str) -> None:
    model = build(name)
    plan = spoil_(model, group, how)
    assert plan is not None
    x = images_for(model)
    expected = outputs_of(model(x))
    repairs = REPAIRS["dead"] if (group, how) == ("qk", "constant") else REPAIRS[how]
    calibration = as_batches(images_for(model, 32, seed=1), 32)
    statistics = observe(model, calibration, repair_needs("least_squares", {group}))
    for repair in repairs:
        smaller = copy.deepcopy(model)
        cut_(smaller, plan, statistics, repair)
        difference = float((outputs_of(smaller(x)) - expected).abs().max())
        assert difference <= 1e-5, (repair, difference)


@pytest.mark.parametrize(
    ("preset", "group", "how"),
    [
        *(("energy", group, "dead") for group in UNIT_GROUPS),
        *(("taylor", group, "dead") for group in UNIT_GROUPS),
        ("energy", "qk", "constant"),
        ("vbp", "hidden", "constant"),
    ],
)
@torch.no_grad()
def test_criteria_find_redundant_units(preset: str, group: GroupName, how: str) -> None:
    model = build("deit3")
    plan = spoil_(model, group, how)
    assert plan is not None
    x = images_for(model)
    calibration = images_for(model, 8, seed=2)
    small = {group: 1}
    result = prune(model, calibration, f"50% {group}", preset=preset, align=small, minimum=small)
    assert result.plan.units == plan.units
    assert torch.allclose(outputs_of(result.model(x)), outputs_of(model(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("kind", ["attention", "mlp"])
@torch.no_grad()
def test_layers_that_add_a_constant_go_without_loss(name: str, kind: str) -> None:
    model = build(name)
    family = family_of(model)
    for branch in read(model).branches[:4]:
        weights = family.weights(model, branch)
        if isinstance(weights, AttentionWeights):
            weights = replace(weights, o_DHV=0 * weights.o_DHV)
        else:
            weights = replace(weights, w2_DF=0 * weights.w2_DF)
        if branch.kind == kind:
            family.assign_(model, branch, weights)
    anatomy = read(model)
    gone = {b.id for b in anatomy.branches[:4] if b.kind == kind}
    plan = Plan(shapes={id: None if id in gone else s for id, s in anatomy.shapes.items()})
    x = images_for(model)
    expected = outputs_of(model(x))
    statistics = observe(model, as_batches(images_for(model, 8, seed=1), 4), ("update_mean",))
    cut_(model, plan, statistics, "mean")
    assert torch.allclose(outputs_of(model(x)), expected, rtol=0, atol=1e-5)
