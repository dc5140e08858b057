"""From hard masks to shapes and units: what of them can be cut out, and what has to stay as zeros.

Letters: H heads, K query/key dims, V value dims, F hidden neurons, D residual width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.allocation.candidates import Limits
from secateur.allocation.types import GROUPS_OF, Plan, Sizes, Units
from secateur.masks.gates import Act, Gate, Site
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

Masks = Mapping[str, Mapping[Site, Tensor]]
"""By branch and site, of the sites that are gated: booleans in the shape of the site or `()`."""


def acts_by_site(gates: Iterable[Gate]) -> dict[tuple[str, Site], list[tuple[str, Act]]]:
    """All acts with the names of their gates, by branch and site."""
    found: dict[tuple[str, Site], list[tuple[str, Act]]] = {}
    for gate in gates:
        for act in gate.acts:
            found.setdefault((act.branch, act.site), []).append((gate.name, act))
    return found


def spread(values_RU: Tensor, act: Act) -> Tensor:
    """The value of every unit of a site."""
    return values_RU.reshape(-1)[act.index]


def product(values: Mapping[str, Tensor], acts: list[tuple[str, Act]]) -> Tensor:
    """The product of all gates that act on one site."""
    name, act = acts[0]
    total = spread(values[name], act)
    for name, act in acts[1:]:
        total = total * spread(values[name], act)
    return total


def masks_of(gates: Iterable[Gate], kept: Mapping[str, Tensor]) -> dict[str, dict[Site, Tensor]]:
    """The masks of all sites from the kept units (R, U) of each gate."""
    found: dict[str, dict[Site, Tensor]] = {}
    for (branch, site), acts in acts_by_site(gates).items():
        found.setdefault(branch, {})[site] = product(kept, acts)
    return found


def kept_shape(branch: Branch, masks: Mapping[Site, Tensor], limits: Limits) -> Shape | None:
    """The shape of a branch when all is cut out that can be; None when it is dropped.

    A branch whose whole update is masked is dropped, a head without a live value dim removed, a
    query/key dim removed where query or key is masked. Heads keep equally many dims, the most
    that one of them needs, up to alignment and minimum: the rest of those are zeros.
    """
    update = masks.get("update")
    if update is not None and not bool(update.any()):
        return None
    dense = branch.shape
    if isinstance(dense, MlpShape):
        live = int(masks["hidden"].sum()) if "hidden" in masks else dense.hidden
        return MlpShape(hidden=padded(live, branch, "hidden", limits))
    qk_HK, context_HV = live_dims(dense, masks)
    heads_H = context_HV.any(-1)
    some_H = heads_H if bool(heads_H.any()) else ~heads_H
    return AttentionShape(
        heads=padded(int(heads_H.sum()), branch, "heads", limits),
        qk=padded(int(qk_HK[some_H].sum(-1).max()), branch, "qk", limits),
        vo=padded(int(context_HV[some_H].sum(-1).max()), branch, "vo", limits),
    )


def kept_units(
    branch: Branch, masks: Mapping[Site, Tensor], shape: Shape
) -> dict[GroupName, Units]:
    """The units that stay in a branch of that shape: live ones first, then as many others."""
    dense = branch.shape
    live: dict[GroupName, Tensor] = {}
    if isinstance(dense, AttentionShape):
        live["qk"], live["vo"] = live_dims(dense, masks)
        live["heads"] = live["vo"].any(-1)
    elif "hidden" in masks:
        live["hidden"] = masks["hidden"].cpu()
    units: dict[GroupName, Units] = {}
    for group, mask in live.items():
        if (size := shape.size(group)) < dense.size(group):
            rows = _first(mask.reshape(-1, mask.shape[-1]), size)
            units[group] = rows if mask.ndim == 2 else rows[0]
    return units


def live_dims(dense: AttentionShape, masks: Mapping[Site, Tensor]) -> tuple[Tensor, Tensor]:
    """Live query/key dims (H, K), in query and key alike, and live value dims (H, V)."""
    qk_HK = torch.ones(dense.heads, dense.qk, dtype=torch.bool)
    context_HV = torch.ones(dense.heads, dense.vo, dtype=torch.bool)
    for site in ("query", "key"):
        if site in masks:
            qk_HK = qk_HK & masks[site].cpu()
    if "context" in masks:
        context_HV = context_HV & masks["context"].cpu()
    return qk_HK, context_HV


def padded(count: int, branch: Branch, group: GroupName, limits: Limits) -> int:
    """The smallest allowed size of a group that holds `count` units."""
    dense = branch.shape.size(group)
    if group not in branch.groups:
        return dense
    step = limits.align.get(group, 1)
    wanted = max(count, limits.minimum.get(group, 1), 1)
    return min(dense, -(-wanted // step) * step)


def _first(live_RU: Tensor, size: int) -> tuple[tuple[int, ...], ...]:
    """Of every row, `size` units, live ones first, in ascending order."""
    order = live_RU.byte().sort(dim=-1, descending=True, stable=True).indices
    rows: list[list[int]] = order[:, :size].sort(dim=-1).values.tolist()
    return tuple(tuple(row) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of a model after removal: shapes of branches and widths of streams."""

    shapes: Shapes
    widths: Widths

    @property
    def of_streams(self) -> Sizes:
        """The widths, for cost functions."""
        return {(stream, "width"): width for stream, width in self.widths.items()}


def left_of(anatomy: Anatomy, masks: Masks, limits: Limits) -> Left:
    """What is left of a model when all is cut out that its masks allow."""
    shapes = {b.id: kept_shape(b, masks.get(b.id, {}), limits) for b in anatomy.branches}
    widths = {
        stream.id: int(masks[stream.id]["width"].sum())
        for stream in anatomy.streams
        if stream.id in masks
    }
    return Left(shapes=shapes, widths=widths)


def sizes_of(branch: Branch, shape: Shape | None) -> Sizes:
    """The sizes of a branch's groups, for cost functions."""
    if shape is None:
        return {(branch.id, "branch"): 0}
    return {(branch.id, group): shape.size(group) for group in GROUPS_OF[branch.kind]}


def plan_of_masks(anatomy: Anatomy, masks: Masks, limits: Limits) -> Plan:
    """The plan that cuts out of every branch all that its masks allow."""
    left = left_of(anatomy, masks, limits)
    units: dict[str, dict[GroupName, Units]] = {}
    for branch in anatomy.branches:
        shape = left.shapes[branch.id]
        if shape is not None and (kept := kept_units(branch, masks.get(branch.id, {}), shape)):
            units[branch.id] = kept
    for stream in anatomy.streams:
        if left.widths.get(stream.id, stream.width) < stream.width:
            live_D = masks[stream.id]["width"].cpu()
            units[stream.id] = {"width": tuple(live_D.nonzero()[:, 0].tolist())}
    return Plan(shapes=left.shapes, widths=left.widths, units=units)
