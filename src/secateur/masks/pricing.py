"""What gates cost: exactly, as counted after removal, and unit by unit, as a gradient sees it.

Letters: R rows, U units per row, H heads, K query/key dims, V value dims, F hidden neurons,
D residual width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.allocation.candidates import Limits
from secateur.allocation.costs import CostOf
from secateur.allocation.types import Sizes
from secateur.masks.gates import Act, Gate, Priced, Site
from secateur.masks.masks import Left, Masks, left_of, live_dims, sizes_of
from secateur.models.types import Anatomy, AttentionShape, Branch, Cost, GroupName, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """A cost function, what alignment allows, and the budget in the unit of the cost."""

    anatomy: Anatomy
    cost_of: CostOf
    limits: Limits
    limit: float

    @property
    def dense(self) -> float:
        """The cost of the model as it is."""
        return self.cost_of({})

    @property
    def share(self) -> float:
        """The budget as a share of the dense cost."""
        return self.limit / self.dense


def left_of_masks(pricing: Pricing, masks: Masks) -> Left:
    """What is left of the model after removal."""
    return left_of(pricing.anatomy, masks, pricing.limits)


def all_sizes(pricing: Pricing, left: Left) -> Sizes:
    """The sizes of all groups, for cost functions."""
    sizes = left.of_streams
    for branch in pricing.anatomy.branches:
        sizes |= sizes_of(branch, left.shapes[branch.id])
    return sizes


def exact_cost(pricing: Pricing, left: Left) -> float:
    """The counted cost of what is left."""
    return pricing.cost_of(all_sizes(pricing, left))


def unit_prices(
    pricing: Pricing, gates: Iterable[Gate], masks: Masks, left: Left
) -> dict[str, Tensor]:
    """What each unit (R, U) of each gate adds to the cost, as a share of the dense cost.

    Prices are differences of the cost function at the present shapes: a query/key dim costs a
    share of what a dim costs in all live heads, and nothing in a head that is gone. Outputs of a
    writer are priced as if they could be removed, since that is what their masks claim.
    """
    by_id = {branch.id: branch for branch in pricing.anatomy.branches}
    found: dict[str, Tensor] = {}
    for gate in gates:
        total = torch.zeros(gate.rows * gate.units)
        for act in gate.acts:
            if act.takes == "width":
                price = torch.tensor(_channel_price(pricing, act.branch, left))
            else:
                price = _price(pricing, by_id[act.branch], act, masks.get(act.branch, {}), left)
            spread = (act.part * price).expand(act.index.shape)
            total.index_add_(0, act.index.reshape(-1), spread.reshape(-1))
        found[gate.name] = total.reshape(gate.rows, gate.units) / pricing.dense
    return found


def _channel_price(pricing: Pricing, stream: str, left: Left) -> float:
    """What one channel of a stream adds to the cost of everything that reads or writes it."""
    width, sizes = left.widths[stream], all_sizes(pricing, left)
    low, high = (width - 1, width) if width > 1 else (width, width + 1)
    above, below = sizes | {(stream, "width"): high}, sizes | {(stream, "width"): low}
    return pricing.cost_of(above) - pricing.cost_of(below)


def _price(
    pricing: Pricing, branch: Branch, act: Act, masks: Mapping[Site, Tensor], left: Left
) -> Tensor:
    """What each unit of a site adds to the cost: () or the shape of the site."""
    shape, widths = left.shapes[branch.id], left.of_streams
    if act.takes == "branch":
        present = sizes_of(branch, shape or branch.shape) | widths
        whole = pricing.cost_of.part(branch.id, present)
        return torch.tensor(whole - pricing.cost_of.part(branch.id, sizes_of(branch, None)))
    if shape is None:
        return torch.tensor(0.0)
    if act.takes == "rows":
        return torch.tensor(_row_price(pricing, branch, shape))
    slope = _slope(pricing, branch, shape, act.takes, widths)
    if not isinstance(branch.shape, AttentionShape) or act.takes == "heads":
        return torch.tensor(slope)
    _, context_HV = live_dims(branch.shape, masks)
    live_H = context_HV.any(-1)
    return (live_H.float() * (slope / max(1, int(live_H.sum()))))[:, None]


def _slope(pricing: Pricing, branch: Branch, shape: Shape, takes: Priced, widths: Sizes) -> float:
    """Cost of one more unit of a group, or of the last one where there are no more."""
    group: GroupName = "hidden" if takes == "rows" else takes
    present, sizes = shape.size(group), sizes_of(branch, shape) | widths
    # WHY: a measured cost is a staircase, so it is looked at over a whole step.
    step = max(1, min(pricing.limits.align.get(group, 1), present - 1))
    if pricing.cost_of.unit == "ms":
        step = max(step, present // 8)
    low, high = (present - step, present) if present > step else (present, present + step)
    part = pricing.cost_of.part
    above, below = sizes | {(branch.id, group): high}, sizes | {(branch.id, group): low}
    return (part(branch.id, above) - part(branch.id, below)) / (high - low)


def _row_price(pricing: Pricing, branch: Branch, shape: Shape) -> float:
    """The share of one output of a writer in the cost: its weights and its bias."""
    if pricing.cost_of.unit == "ms":
        return 0.0
    inputs = _writer_inputs(shape)
    if pricing.cost_of.unit == "macs":
        return float(branch.computed * inputs)
    return float(inputs + int(branch.writer_bias))


def _writer_inputs(shape: Shape) -> int:
    return shape.heads * shape.vo if isinstance(shape, AttentionShape) else shape.hidden


def masked_cost(anatomy: Anatomy, masks: Masks) -> Cost:
    """What is left when all that masks claim is counted as gone, removable or not."""
    widths = {
        stream.id: int(masks[stream.id]["width"].sum())
        for stream in anatomy.streams
        if stream.id in masks
    }
    total = anatomy.ends_cost(widths)
    for branch in anatomy.branches:
        width = anatomy.width_of(branch, widths)
        total = total + _masked_branch(branch, masks.get(branch.id, {}), width)
    return total


def _masked_branch(branch: Branch, masks: Mapping[Site, Tensor], width: int) -> Cost:
    update = masks.get("update")
    if update is not None and not bool(update.any()):
        return Cost()
    dead = 0 if update is None or update.ndim == 0 else int((~update).sum())
    fixed = branch.fixed.at(width)
    if not isinstance(branch.shape, AttentionShape):
        live = int(masks["hidden"].sum()) if "hidden" in masks else branch.shape.size("hidden")
        cost = fixed + branch.per_hidden.at(width) * live
        return cost - _dead_rows(branch, dead, live)
    rows = {site: _rows_live(branch.shape, masks, site) for site in ("query", "key", "context")}
    heads_H = rows["context"].any(-1)
    queries, keys = (int(rows[site][heads_H].sum()) for site in ("query", "key"))
    live = int(rows["context"].sum())
    half = branch.per_qk.at(width)
    cost = fixed + branch.per_head.at(width) * int(heads_H.sum())
    cost = cost + branch.per_qk_layer.at(width) * branch.shape.qk
    cost = cost + Cost(
        params=half.params * (queries + keys) // 2, macs=half.macs * (queries + keys) // 2
    )
    return cost + branch.per_vo.at(width) * live - _dead_rows(branch, dead, live)


def _rows_live(dense: AttentionShape, masks: Mapping[Site, Tensor], site: str) -> Tensor:
    dims = dense.vo if site == "context" else dense.qk
    mask = {str(key): value for key, value in masks.items()}.get(site)
    return torch.ones(dense.heads, dims, dtype=torch.bool) & (True if mask is None else mask)


def _dead_rows(branch: Branch, dead: int, inputs: int) -> Cost:
    """What masked outputs of a writer with that many live inputs would save."""
    return Cost(
        params=dead * (inputs + int(branch.writer_bias)), macs=dead * inputs * branch.computed
    )
