"""Hosts × groups, plans made by hand for each, and the dense model masked as the plan says."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.allocation.types import Plan, Units
from secateur.models.family import family_of, read
from secateur.models.hook_points import Edit, HookPoint, attached
from secateur.models.types import (
    Anatomy,
    AttentionShape,
    Branch,
    GroupName,
    MlpShape,
    Shape,
    Shapes,
    Widths,
)
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

NARROWER = ("width", "everything and width")
"""Plans that make the stream narrower."""

GROUPS: tuple[str, ...] = (*UNIT_GROUPS, *DROPS, "everything", *NARROWER)


def offered(anatomy: Anatomy, group: str) -> bool:
    """Whether some branch, or the stream, of a host can be made smaller in this way."""
    if group in NARROWER:
        return bool(anatomy.streams)
    return group not in UNIT_GROUPS or any(group in branch.groups for branch in anatomy.branches)


CASES = [(name, group) for name in HOSTS for group in GROUPS if offered(anatomy_of(name), group)]
UNIT_CASES = [(name, group) for name, group in CASES if group in UNIT_GROUPS]
NARROW_CASES = [(name, group) for name, group in CASES if group in NARROWER]
DROP_CASES = [(name, group) for name, group in CASES if group in DROPS]


def plan_for(anatomy: Anatomy, group: str, seed: int = 0) -> Plan:
    """Random units of a group, as many in each layer as chance has it; or whole branches."""
    generator = torch.Generator().manual_seed(seed)
    shapes: Shapes = {}
    units: dict[str, dict[GroupName, Units]] = {}
    some: tuple[str, ...] = ("0 attention", "1 mlp")
    dropped = {"everything": some, "everything and width": some} | DROPS
    met = Counter[str]()
    for branch in anatomy.branches:
        number = met[branch.kind]
        met[branch.kind] += 1
        if {f"{number} {branch.kind}", "*"} & set(dropped.get(group, ())):
            shapes[branch.id] = None
            continue
        wanted = branch.groups if group.startswith("everything") else (group,)
        kept = {g: _some(branch, g, generator) for g in UNIT_GROUPS if g in wanted}
        kept = {g: chosen for g, chosen in kept.items() if g in branch.groups}
        if kept:
            units[branch.id] = kept
        shapes[branch.id] = _shape(branch, kept)
    widths: Widths = {}
    for stream in anatomy.streams if group in NARROWER else ():
        widths[stream.id] = int(torch.randint(4, stream.width, (), generator=generator))
        order = torch.randperm(stream.width, generator=generator)[: widths[stream.id]]
        units[stream.id] = {"width": tuple(sorted(order.tolist()))}
    return Plan(shapes=shapes, widths=widths, units=units)


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
    edits: list[tuple[HookPoint, Edit]] = []
    for branch in read(model).branches:
        hook_points = family.hook_points(model, branch)
        for site, mask in _masks(branch, plan).items():
            edits.append((hook_points[site], _blend(mask, fill(branch, site))))
    with attached(model, edits), narrowed(model, plan):
        yield model


@contextmanager
def narrowed(model: nn.Module, plan: Plan) -> Iterator[None]:
    """The dense model whose norms see only the channels that stay, and its readers too."""
    handles: list[RemovableHandle] = []
    family = family_of(model)
    for stream in read(model).streams:
        if (kept := plan.units.get(stream.id, {}).get("width")) is None:
            continue
        found = family.stream_readers(model, stream)
        for path in found.norms:
            handles.append(model.get_submodule(path).register_forward_hook(_over(_index(kept))))
        for path in found.readers:
            handles.append(model.get_submodule(path).register_forward_pre_hook(_only(_index(kept))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _over(kept_S: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def normalise(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Identity):
            return output
        x_S = args[0][..., kept_S]
        if isinstance(module, nn.LayerNorm):
            x_S = x_S - x_S.mean(-1, keepdim=True)
        x_S = x_S / (x_S.square().mean(-1, keepdim=True) + module.eps).sqrt()
        x_S = x_S * module.weight[kept_S]
        if getattr(module, "bias", None) is not None:
            x_S = x_S + module.bias[kept_S]
        return torch.zeros_like(output).index_copy(-1, kept_S, x_S)

    return normalise


def _only(kept_S: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def mask(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        axis = 1 if args[0].ndim == 4 else -1
        own = args[0].index_select(axis, kept_S)
        kept = torch.zeros_like(args[0]).index_copy(axis, kept_S, own)
        return (kept, *args[1:])

    return mask


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
    if callable(choose := getattr(model, "set_attn_implementation", None)):
        choose("sdpa" if fused else "eager")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
