"""From scores to candidates: which sizes a group may take, and what each is predicted to cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.allocation.types import Candidates, Sizes, Units
from secateur.errors import UserError
from secateur.models.types import Anatomy, Block, Branch, GroupName, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be chosen: widths are multiples of `align`, at least `minimum`.

    `protect` lists branch or block ids, or prefixes of them, that stay as they are.
    """

    align: Mapping[GroupName, int] = field(
        default_factory=lambda: {"qk": 8, "vo": 8, "hidden": 16, "heads": 1, "width": 16}
    )
    minimum: Mapping[GroupName, int] = field(
        default_factory=lambda: {"qk": 8, "vo": 8, "hidden": 16, "heads": 1, "width": 16}
    )
    protect: tuple[str, ...] = ()

    def protects(self, owner: str) -> bool:
        """Whether a branch or block stays as it is."""
        return any(owner == name or owner.startswith(name + ".") for name in self.protect)


def check_protected(anatomy: Anatomy, limits: Limits) -> None:
    """UserError for a protected name that is no part of the model."""
    known = [branch.id for branch in anatomy.branches] + [block.id for block in anatomy.blocks]
    known += [stream.id for stream in anatomy.streams]
    for name in limits.protect:
        if name not in known:
            raise UserError(
                f"'{name}' is protected but is no branch or block of this model; "
                f"names look like {known[0]} and {anatomy.blocks[0].id}."
            )


def allowed_sizes(branch: Branch, group: GroupName, limits: Limits) -> tuple[int, ...]:
    """The sizes a group of a branch may take, ascending, the present one last."""
    return _allowed(branch.id, group, branch.shape.size(group), limits)


def allowed_widths(stream: Stream, limits: Limits) -> tuple[int, ...]:
    """The widths a stream may take, ascending, the present one last."""
    return _allowed(stream.id, "width", stream.width, limits)


def _allowed(owner: str, group: GroupName, present: int, limits: Limits) -> tuple[int, ...]:
    step, least = limits.align.get(group, 1), limits.minimum.get(group, 1)
    if limits.protects(owner):
        return (present,)
    first = max(step, -(-least // step) * step)
    return (*range(first, present, step), present)


def unit_candidates(branch: Branch, group: GroupName, score: Tensor, limits: Limits) -> Candidates:
    """Candidate list of a group from its unit scores: losing units costs the sum of the lowest
    scores.

    `score` is (F,), (H,) or per head (H, K), where every head loses the same number of dims.
    """
    return _scored(branch.id, group, allowed_sizes(branch, group, limits), score)


def width_candidates(stream: Stream, score_D: Tensor, limits: Limits) -> Candidates:
    """Candidate list of a stream from the scores of its channels."""
    return _scored(stream.id, "width", allowed_widths(stream, limits), score_D)


def _scored(owner: str, group: GroupName, sizes: tuple[int, ...], score: Tensor) -> Candidates:
    ascending = score.double().sort(dim=-1).values
    # WHY: a worth may be zero or slightly negative by rounding; losses must not fall below 0.
    lost = torch.cumsum(ascending.clamp(min=0), dim=-1)
    total = lost.sum(0) if lost.ndim == 2 else lost
    present = sizes[-1]
    losses = [float(total[present - size - 1]) if size < present else 0.0 for size in sizes]
    return Candidates(owner=owner, group=group, sizes=sizes, losses=tuple(losses))


def drop_candidates(owner: str, group: GroupName, score: float, limits: Limits) -> Candidates:
    """Candidate list of a whole branch or block: keep it, or drop it at the loss of its score."""
    if limits.protects(owner):
        return Candidates(owner=owner, group=group, sizes=(1,), losses=(0.0,))
    return Candidates(owner=owner, group=group, sizes=(0, 1), losses=(max(score, 0.0), 0.0))


def block_candidates(block: Block, score: float, limits: Limits) -> Candidates:
    """Candidate list of a whole block: one with a protected branch stays."""
    if any(limits.protects(branch) for branch in block.branches):
        return Candidates(owner=block.id, group="block", sizes=(1,), losses=(0.0,))
    return drop_candidates(block.id, "block", score, limits)


def kept_units(score: Tensor, size: int) -> Units:
    """The `size` best units in ascending order of index; per head for (H, K) scores.

    Ties go to the lower index, so that equal inputs give equal plans.
    """
    order = score.sort(dim=-1, descending=True, stable=True).indices
    kept = order[..., :size].sort(dim=-1).values
    if kept.ndim == 2:
        return tuple(tuple(row) for row in kept.tolist())
    return tuple(kept.tolist())


def least_sizes(candidates: list[Candidates]) -> Sizes:
    """The smallest choice of every candidate list."""
    return {entry.key: entry.sizes[0] for entry in candidates}
