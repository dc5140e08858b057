"""Describe a model: what it costs, branch by branch, and what can be made smaller."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import nn

from secateur.anatomy.family import family_of
from secateur.anatomy.types import ATTENTION_GROUPS, MLP_GROUPS, Anatomy, Branch, GroupName


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRow:
    """One branch: its cost, its share of the model's MACs and parameters in percent.

    `shape` gives the units of each group (`qk` and `vo` per head), `groups` those that can be made
    smaller, `refusals` why the others cannot.
    """

    id: str
    kind: str
    block: int
    macs: int
    params: int
    macs_percent: float
    params_percent: float
    shape: Mapping[GroupName, int]
    groups: tuple[GroupName, ...]
    refusals: Mapping[GroupName, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A whole model. `ends` is what is no branch: embedding, final norm, heads.

    `streams` gives the width of each residual stream that can be made narrower.

    MACs are those of matrix products for one image, with QK^T and AV.
    """

    family: str
    macs: int
    params: int
    width: int
    tokens: int
    input_size: tuple[int, int, int]
    num_classes: int
    blocks: int
    branches: tuple[BranchRow, ...]
    ends: Mapping[str, int]
    refusals: Mapping[GroupName, str]
    streams: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


def inspect(model: nn.Module) -> Inspection:
    """Read a model without running or changing it; UserError for one of no known family."""
    family = family_of(model)
    anatomy = family.read(model)
    total, ends = anatomy.cost(), anatomy.ends.at(anatomy.width)
    return Inspection(
        family=family.title,
        macs=total.macs,
        params=total.params,
        width=anatomy.width,
        tokens=anatomy.tokens,
        input_size=anatomy.input_size,
        num_classes=anatomy.num_classes,
        blocks=len(anatomy.blocks),
        branches=tuple(_row(anatomy, branch) for branch in anatomy.branches),
        ends={"macs": ends.macs, "params": ends.params},
        refusals=dict(anatomy.refusals),
        streams=anatomy.widths,
    )


def _row(anatomy: Anatomy, branch: Branch) -> BranchRow:
    total, own = anatomy.cost(), branch.cost(branch.shape)
    groups = ATTENTION_GROUPS if branch.kind == "attention" else MLP_GROUPS
    return BranchRow(
        id=branch.id,
        kind=branch.kind,
        block=branch.block,
        macs=own.macs,
        params=own.params,
        macs_percent=100 * own.macs / total.macs,
        params_percent=100 * own.params / total.params,
        shape={group: branch.shape.size(group) for group in groups},
        groups=branch.groups,
        refusals=dict(branch.refusals),
    )
