"""Candidates, sizes and plans: the choices, the chosen sizes, and the shapes that follow."""

from dataclasses import dataclass, field
from typing import Literal

from secateur.models.types import (
    ATTENTION_GROUPS,
    MLP_GROUPS,
    Anatomy,
    AttentionShape,
    Branch,
    GroupName,
    MlpShape,
    Shape,
    Shapes,
    Widths,
)

Key = tuple[str, GroupName]
Sizes = dict[Key, int]
Reduction = Literal["select", "rotate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The sizes one group of one branch (or block) could take and the loss each would cost.

    `sizes` ascends to the dense size; `losses` descends to 0, on one scale for the whole plan.
    For `branch` and `block` the sizes are 0 (dropped) and 1.
    """

    owner: str
    group: GroupName
    sizes: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def key(self) -> Key:
        """What identifies this candidate list."""
        return (self.owner, self.group)

    def loss(self, size: int) -> float:
        """Predicted loss at a size on the candidate list."""
        return self.losses[self.sizes.index(size)]


Units = tuple[int, ...] | tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One shape per branch (None: dropped), and which units stay or that they are rotated.

    `units[branch][group]` are kept indices into the dense model: (F,) for `hidden`, (H,) for
    `heads`, one tuple per dense head for `qk` and `vo`. A group without units in a branch keeps
    everything or is rotated, as `reductions` says. `widths` are those of the streams, missing ones
    stay; the channels that a stream keeps are `units[stream]["width"]`. `merges` are the tokens
    that a block merges, by its id.
    """

    shapes: Shapes
    widths: Widths = field(default_factory=dict)
    units: dict[str, dict[GroupName, Units]] = field(default_factory=dict)
    reductions: dict[GroupName, Reduction] = field(default_factory=dict)
    predicted_loss: float = 0.0
    merges: dict[str, int] = field(default_factory=dict)


GROUPS_OF = {"attention": ATTENTION_GROUPS, "mlp": MLP_GROUPS}
"""The groups of units that make up the shape of a branch, by its kind."""


def dense_sizes(anatomy: Anatomy) -> Sizes:
    """The present size of every group, branch and block."""
    sizes: Sizes = {(block.id, "block"): 1 for block in anatomy.blocks if block.branches}
    for branch in anatomy.branches:
        sizes[branch.id, "branch"] = 1
        for group in GROUPS_OF[branch.kind]:
            sizes[branch.id, group] = branch.shape.size(group)
    return sizes | {(stream.id, "width"): stream.width for stream in anatomy.streams}


def widths_of(anatomy: Anatomy, sizes: Sizes) -> Widths:
    """The width of every stream when the groups in `sizes` take these sizes."""
    return {s.id: sizes.get((s.id, "width"), s.width) for s in anatomy.streams}


def shapes_of(anatomy: Anatomy, sizes: Sizes) -> Shapes:
    """The shape of every branch when the groups in `sizes` take these sizes."""
    by_id = {branch.id: branch for branch in anatomy.branches}
    return {
        branch_id: shape_of(by_id[branch_id], block.id, sizes)
        for block in anatomy.blocks
        for branch_id in block.branches
    }


def shape_of(branch: Branch, block_id: str, sizes: Sizes) -> Shape | None:
    """The shape of one branch; None when it or its block is dropped."""
    if 0 in (sizes.get((block_id, "block"), 1), sizes.get((branch.id, "branch"), 1)):
        return None

    def size(group: GroupName) -> int:
        return sizes.get((branch.id, group), branch.shape.size(group))

    if branch.kind == "attention":
        return AttentionShape(heads=size("heads"), qk=size("qk"), vo=size("vo"))
    return MlpShape(hidden=size("hidden"))
