"""Measured candidates: reduce one group at a time and measure the degradation of the whole model.

Each probe replaces one branch by a reduced form of it and runs the rest of the dense model on from
there; its loss is how far the outputs are then from the dense ones (see
`secateur.statistics.divergence`), for classes KL(dense || probed) in nats. A few sizes of each
group are measured; the others follow along an analytic error. Probe images must be held out of the
fit of the reducer (`secateur.data.split`): a reduction looks harmless on the very images that it
was fitted to, most of all where single tokens count. Legend: N tokens, D residual width, P probe
images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.ablation.probe_runner import ProbeRunner
from secateur.allocation.candidates import Limits, block_candidates, drop_candidates
from secateur.allocation.curves import candidates_from_probes
from secateur.allocation.types import Candidates
from secateur.models.types import Branch, GroupName
from secateur.models.weights import BranchWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much probing a run may do: images, and the shares of each group's size to measure."""

    images: int
    shares: tuple[float, ...]


QUICK = Effort(images=32, shares=(0.5, 0.25))
FULL = Effort(images=64, shares=(0.75, 0.5, 0.25, 0.125))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measurement: the divergence with a group at a size."""

    owner: str
    group: GroupName
    size: int
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """Candidates of all groups, and the measurements behind them."""

    candidates: list[Candidates]
    probes: list[Probe]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reductions:
    """The sizes a group may take, the present one last: analytic error and weights of each."""

    errors: dict[int, float]
    at: Callable[[int], BranchWeights]


class Reducer(Protocol):
    """How a branch is reduced before it is measured."""

    def reductions(self, branch: Branch, group: GroupName, weights: BranchWeights) -> Reductions:
        """The smaller forms of a group of a branch."""
        ...

    def remainder(self, branch: Branch, like: Tensor) -> Tensor:
        """The constant (D,) that is left of the update of a dropped branch, fp64 on the device of
        the stream `like`."""
        ...


@torch.no_grad()
def measure_candidates(
    probe: ProbeRunner,
    reducer: Reducer,
    groups: tuple[GroupName, ...],
    limits: Limits,
    shares: tuple[float, ...],
    on_branch: Callable[[int, int], None] | None = None,
) -> Probed:
    """Measure the candidates of all groups, branch by branch along the dense stream.

    UserError where outputs change, but the loss is 0 for every candidate.
    """
    anatomy = probe.runner.anatomy
    candidates: list[Candidates] = []
    probes: list[Probe] = []

    def drop(owner: str, group: GroupName, place: int, stream_PND: Tensor) -> float:
        loss = probe.finish(place + 1, stream_PND).divergence
        probes.append(Probe(owner=owner, group=group, size=0, divergence=loss))
        return loss

    stream_PND = block_start_PND = probe.start_PND
    for place, branch in enumerate(anatomy.branches):
        block = next(b for b in anatomy.blocks if branch.id in b.branches)
        arrived_PND = probe.runner.arrive(place, stream_PND)
        if branch.id == block.branches[0]:
            block_start_PND = arrived_PND
        for group in [group for group in groups if group in branch.groups]:
            entry, found = _measure_group(probe, reducer, place, group, shares, stream_PND)
            candidates.append(entry)
            probes += found
        if "branch" in groups:
            rest_D = reducer.remainder(branch, stream_PND).to(arrived_PND)
            loss = drop(branch.id, "branch", place, arrived_PND + rest_D)
            candidates.append(drop_candidates(branch.id, "branch", loss, limits))
        stream_PND = probe.advanced(place, stream_PND)
        if "block" in groups and branch.id == block.branches[-1]:
            own = [reducer.remainder(anatomy.branch(name), stream_PND) for name in block.branches]
            rest_D = torch.stack(own).sum(0).to(stream_PND)
            loss = drop(block.id, "block", place, block_start_PND + rest_D)
            candidates.append(block_candidates(block, loss, limits))
        if on_branch is not None:
            on_branch(place + 1, len(anatomy.branches))
    probe.require_seen()
    return Probed(candidates=candidates, probes=probes)


def _measure_group(
    probe: ProbeRunner,
    reducer: Reducer,
    place: int,
    group: GroupName,
    shares: tuple[float, ...],
    stream_PND: Tensor,
) -> tuple[Candidates, list[Probe]]:
    """Measure a group at those of its sizes that are nearest to the wanted shares."""
    runner, branch = probe.runner, probe.runner.anatomy.branches[place]
    weights = runner.weights(branch)
    found = reducer.reductions(branch, group, weights)
    measured = {}
    for size in nearest_sizes(found.errors, branch.shape.size(group), shares):
        changed_PND = probe.changed(branch, found.at(size), stream_PND)
        measured[size] = probe.finish(place + 1, changed_PND).divergence
    if measured:
        probe.scratch.assign_(branch, weights)
    sizes, errors = tuple(found.errors), list(found.errors.values())
    entry = candidates_from_probes(branch.id, group, sizes, errors, measured)
    return entry, [
        Probe(owner=branch.id, group=group, size=size, divergence=loss)
        for size, loss in measured.items()
    ]


def nearest_sizes(sizes: Iterable[int], present: int, shares: Iterable[float]) -> list[int]:
    """The sizes below the present one that are nearest to shares of it, ascending."""
    smaller = [size for size in sizes if size < present]
    wanted = {
        min(smaller, key=lambda size: abs(size - share * present)) for share in shares if smaller
    }
    return sorted(wanted)
