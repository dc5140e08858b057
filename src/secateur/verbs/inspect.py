"""Describe a model: the cost and the prunable groups of every branch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from torch import nn

from secateur.measurement.timing import Times, time_branches
from secateur.models.checks.draft import draft_of
from secateur.models.checks.wrapped import UnknownFamilyError
from secateur.models.host import host_of
from secateur.models.sharing import has_shared, parameters_outside
from secateur.models.types import ATTENTION_GROUPS, MLP_GROUPS, Anatomy, Branch, GroupName
from secateur.request.takes import takes
from secateur.verbs.requests import InspectRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchRow:
    """One branch: its cost, its share of the model's MACs and parameters in percent.

    `ms` is the time of the branch alone, None where it was not measured.
    `shape` gives the units of each group (`qk` and `vo` per head), `groups` the prunable ones,
    `refusals` the reasons against the others.
    """

    id: str
    kind: str
    block: int
    macs: int
    params: int
    macs_percent: float
    params_percent: float
    ms: float | None
    shape: Mapping[GroupName, int]
    groups: tuple[GroupName, ...]
    refusals: Mapping[GroupName, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedTime:
    """Milliseconds of one pass of the whole model and of its stem and head, and their setting."""

    ms: float
    ends_ms: float
    runtime: str
    device: str
    batch_size: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A whole model. `ends` is the cost of its stem and head: embedding, final norm, classifier.

    `streams` gives the width of each prunable residual stream, `stand_ins` the cost of the linear
    layers in place of dropped branches.

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
    stand_ins: Mapping[str, Mapping[str, int]]
    latency: InspectedTime | None

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        return asdict(self)


@takes(InspectRequest)
def inspect(model: nn.Module, request: InspectRequest) -> Inspection:
    """Read a model without changing it.

    For a model of no known family, a note of the UserError says what was recognised and what is
    missing, and drafts a statement for `secateur.load(model, family=...)` as Python text.
    With `latency`, each branch is timed alone, in turns with the whole model, in `runtime` with
    `latency_batch` images at a time; otherwise the model is not run.
    """
    try:
        host = host_of(model)
    except UnknownFamilyError as error:
        if (draft := draft_of(model)).lines:
            error.add_note(draft.text())
        raise
    anatomy = host.anatomy
    times = None
    if request.latency:
        times = time_branches(
            host,
            runtime=request.runtime,
            batch_size=request.latency_batch,
            progress=request.progress,
        )
    total, ends = anatomy.cost(), anatomy.ends.at(anatomy.width)
    ends = sum((layer.cost * -1 for layer in anatomy.stand_ins), ends)
    if has_shared(model):
        # WHY: what several branches hold is in the row of each, but counts once in the model.
        total = replace(total, params=sum(p.numel() for p in model.parameters()))
        ends = replace(ends, params=parameters_outside(host))
    return Inspection(
        family=host.family.title,
        macs=total.macs,
        params=total.params,
        width=anatomy.width,
        tokens=anatomy.tokens,
        input_size=anatomy.input_size,
        num_classes=anatomy.num_classes,
        blocks=len(anatomy.blocks),
        branches=tuple(_row(anatomy, branch, times) for branch in anatomy.branches),
        ends={"macs": ends.macs, "params": ends.params},
        refusals=dict(anatomy.refusals),
        streams=anatomy.widths,
        stand_ins={
            layer.id: {"macs": layer.cost.macs, "params": layer.cost.params}
            for layer in anatomy.stand_ins
        },
        latency=None if times is None else _time(times),
    )


def _time(times: Times) -> InspectedTime:
    return InspectedTime(ms=times.total_ms, ends_ms=times.ends_ms, **asdict(times.setting))


def _row(anatomy: Anatomy, branch: Branch, times: Times | None) -> BranchRow:
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
        ms=None if times is None else times.of(branch.id),
        shape={group: branch.shape.size(group) for group in groups},
        groups=branch.groups,
        refusals=dict(branch.refusals),
    )
