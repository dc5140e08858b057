"""Hosts × groups, plans made by hand for each, and the dense model masked as the plan says."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.anatomy.family import family_of, read
from secateur.anatomy.taps import Edit, Tap, attached
from secateur.anatomy.types import (
    Anatomy,
    AttentionShape,
    Branch,
    GroupName,
    MlpShape,
    Shape,
    Shapes,
)
from secateur.planning.types import Plan, Units
from tests.hosts import HOSTS, anatomy_of

UNIT_GROUPS: tuple[GroupName, ...] = ("hidden", "heads", "qk", "vo")
DROPS: dict[str, tuple[str, ...]] = {
    "attention": ("0 attention", "2 attention"),
    "mlp": ("0 mlp", "1 mlp"),
    "first block": ("0 attention", "0 mlp"),
    "last blocks": ("1 attention", "1 mlp", "2 attention", "2 mlp"),
    "all": ("*",),
}
"""Branches to drop: the n-th of a kind, or all."""

GROUPS: tuple[str, ...] = (*UNIT_GROUPS, *DROPS, "everything")


def offered(anatomy: Anatomy, group: str) -> bool:
    """Whether some branch of a host can be made smaller in this way."""
    return group not in UNIT_GROUPS or any(group in branch.groups for branch in anatomy.branches)


CASES = [(name, group) for name in HOSTS for group in GROUPS if offered(anatomy_of(name), group)]
UNIT_CASES = [(name, group) for name, group in CASES if group in UNIT_GROUPS]
DROP_CASES = [(name, group) for name, group in CASES if group in DROPS]


def plan_for(anatomy: Anatomy, group: str, seed: int = 0) -> Plan:
    """Random units of a group, as many in each layer as chance has it; or whole branches."""
    generator = torch.Generator().manual_seed(seed)
    shapes: Shapes = {}
    units: dict[str, dict[GroupName, Units]] = {}
    dropped = {"everything": ("0 attention", "1 mlp")} | DROPS
    met = Counter[str]()
    for branch in anatomy.branches:
        number = met[branch.kind]
        met[branch.kind] += 1
        if {f"{number} {branch.kind}", "*"} & set(dropped.get(group, ())):
            shapes[branch.id] = None
            continue
        wanted = branch.groups if group == "everything" else (group,)
        kept = {g: _some(branch, g, generator) for g in UNIT_GROUPS if g in wanted}
        kept = {g: chosen for g, chosen in kept.items() if g in branch.groups}
        if kept:
            units[branch.id] = kept
        shapes[branch.id] = _shape(branch, kept)
    return Plan(shapes=shapes, units=units)


def _some(branch: Branch, group: GroupName, generator: torch.Generator) -> Units:
    if group not in branch.groups:
        return ()
    present = branch.shape.size(group)
    size = int(torch.randint(1, max(present, 2), (), generator=generator))

    def draw() -> tuple[int, ...]:
        return tuple(sorted(torch.randperm(present, generator=generator)[:size].tolist()))

    if group in ("hidden", "heads"):
        return draw()
    return tuple(draw() for _ in range(branch.shape.size("heads")))


def plan_of_units(anatomy: Anatomy, units: dict[str, dict[GroupName, Units]]) -> Plan:
    """The plan that keeps these units and all others."""
    shapes: Shapes = {b.id: _shape(b, units.get(b.id, {})) for b in anatomy.branches}
    return Plan(shapes=shapes, units=units)


def _shape(branch: Branch, kept: Mapping[GroupName, Units]) -> Shape:
    def size(group: GroupName) -> int:
        if group not in kept:
            return branch.shape.size(group)
        first = kept[group][0]
        return len(first if isinstance(first, tuple) else kept[group])

    if branch.kind == "mlp":
        return MlpShape(hidden=size("hidden"))
    return AttentionShape(heads=size("heads"), qk=size("qk"), vo=size("vo"))


Fill = Callable[[Branch, str], Tensor | None]
"""Called as fill(branch, site): what stands in place of removed units; None for zero."""


def nothing(_branch: Branch, _site: str) -> None:
    """Removed units are zero."""


@contextmanager
def masked(model: nn.Module, plan: Plan, fill: Fill = nothing) -> Iterator[nn.Module]:
    """The dense model with the units that the plan removes held at zero, or at `fill`."""
    family = family_of(model)
    edits: list[tuple[Tap, Edit]] = []
    for branch in read(model).branches:
        taps = family.taps(model, branch)
        for site, mask in _masks(branch, plan).items():
            edits.append((taps[site], _blend(mask, fill(branch, site))))
    with attached(model, edits):
        yield model


def _blend(mask: Tensor, fill: Tensor | None) -> Edit:
    rest = 0 if fill is None else (1 - mask) * fill.float()
    return lambda x: x * mask + rest


def _masks(branch: Branch, plan: Plan) -> dict[str, Tensor]:
    """A mask of zeros and ones per site of the branch that loses something."""
    shape = branch.shape
    if plan.shapes[branch.id] is None:
        return {"update": torch.zeros(())}
    units = plan.units.get(branch.id, {})
    masks: dict[str, Tensor] = {}
    if isinstance(shape, MlpShape):
        if "hidden" in units:
            masks["hidden"] = torch.zeros(shape.hidden).index_fill(0, _index(units["hidden"]), 1)
        return masks
    if "qk" in units:
        masks["query"] = masks["key"] = _per_head(units["qk"], shape.heads, shape.qk)
    context = torch.ones(shape.heads, shape.vo)
    if "heads" in units:
        heads = torch.zeros(shape.heads).index_fill(0, _index(units["heads"]), 1)
        context = context * heads[:, None]
    if "vo" in units:
        context = context * _per_head(units["vo"], shape.heads, shape.vo)
    if {"heads", "vo"} & set(units):
        masks["context"] = context
    return masks


def _index(units: Units) -> Tensor:
    return torch.tensor(units, dtype=torch.long)


def _per_head(units: Units, heads: int, dims: int) -> Tensor:
    return torch.zeros(heads, dims).scatter(1, _index(units), 1.0)


def fused_(model: nn.Module, fused: bool) -> None:
    """Choose fused or unfused attention in all layers."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
