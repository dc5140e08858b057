"""What the model says without some of its branches: one at a time, in pairs, more and more.

A branch that is left out is replaced by its mean update, which costs nothing when it is folded
into a bias. Every result is measured on the whole model; `steps_run` counts what that took.
Legend: P probe images, N tokens, D residual width, C outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.anatomy.caches import copy_of
from secateur.anatomy.family import Family
from secateur.anatomy.types import Anatomy, Branch
from secateur.anatomy.weights import BranchWeights
from secateur.evidence import Evidence
from secateur.measuring.divergence import Damage, damage, settled
from secateur.pipeline.probe import mean_update

AT_ONCE = 32
"""Images that run through the model at a time."""
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Ablation:
    """A dense model as a row of steps, with the stream of the probe images before the first.

    `means` are the mean updates (D,) that stand for left-out steps. `steps_run` grows by one for
    every step that all probe images went through.
    """

    family: Family
    model: nn.Module
    classes: int
    branches: tuple[Branch, ...]
    steps: list[nn.Module]
    means: list[Tensor]
    stream_PND: Tensor
    dense_PC: Tensor
    steps_run: float = 0.0

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return [branch.id for branch in self.branches]

    def finish(self, start: int, stream_PND: Tensor, without: frozenset[int]) -> Damage:
        """Run the steps from `start`, all but those left out, and compare with the dense model."""
        outputs = []
        for x_BND in stream_PND.split(AT_ONCE):
            for number in range(start, len(self.steps)):
                x_BND = self.step(number, x_BND, number in without)
            outputs.append(settled(self.family.head(self.model, x_BND), self.classes))
        left = sum(number >= start for number in without)
        self.steps_run += len(self.steps) - start - left
        return damage(self.dense_PC, torch.cat(outputs), self.classes)

    def step(self, number: int, x_BND: Tensor, left_out: bool) -> Tensor:
        """The stream after one branch, or after its mean."""
        if left_out:
            arrived_BND = self.family.arrive(self.model, self.branches[number], x_BND)
            return arrived_BND + self.means[number].to(x_BND)
        after_BND: Tensor = self.steps[number](x_BND)
        return after_BND

    def advanced(self, number: int, stream_PND: Tensor) -> Tensor:
        """The stream of all probe images after one branch."""
        self.steps_run += 1
        parts = [self.step(number, x_BND, False) for x_BND in stream_PND.split(AT_ONCE)]
        return torch.cat(parts)


@torch.no_grad()
def ablation(
    model: nn.Module, family: Family, anatomy: Anatomy, evidence: Evidence, images_PCHW: Tensor
) -> Ablation:
    """Embed the probe images and run the dense model on them; needs the mean updates."""
    streams = [family.embed(model, part) for part in images_PCHW.split(AT_ONCE)]
    made = Ablation(
        family=family,
        model=model,
        classes=anatomy.num_classes,
        branches=anatomy.branches,
        steps=[family.through(model, branch) for branch in anatomy.branches],
        means=[mean_update(evidence.about(branch.id)) for branch in anatomy.branches],
        stream_PND=torch.cat(streams),
        dense_PC=torch.empty(0),
    )
    outputs = []
    for x_BND in made.stream_PND.split(AT_ONCE):
        for number in range(len(made.steps)):
            x_BND = made.step(number, x_BND, False)
        outputs.append(settled(family.head(model, x_BND), made.classes))
    made.dense_PC = torch.cat(outputs)
    made.steps_run += len(made.steps)
    return made


@torch.no_grad()
def without_each(
    work: Ablation, groups: Mapping[str, Sequence[str]], on_step: Progress | None = None
) -> dict[str, Damage]:
    """The damage of leaving out each group of branches alone; a group's branches are neighbours."""
    starts = {min(map(work.names.index, own)): name for name, own in groups.items()}
    found: dict[str, Damage] = {}
    stream_PND = work.stream_PND
    for number in range(len(work.steps)):
        if number in starts:
            own = frozenset(map(work.names.index, groups[starts[number]]))
            found[starts[number]] = work.finish(number, stream_PND, own)
        if number + 1 < len(work.steps):
            stream_PND = work.advanced(number, stream_PND)
        if on_step is not None:
            on_step(number + 1, len(work.steps))
    return found


@torch.no_grad()
def in_pairs(
    work: Ablation, chosen: Sequence[str], on_step: Progress | None = None
) -> dict[tuple[str, str], Damage]:
    """The damage of leaving out each two of the chosen branches; pairs in stream order."""
    numbers = sorted(map(work.names.index, chosen))
    found: dict[tuple[str, str], Damage] = {}
    stream_PND = work.stream_PND
    for number in range(numbers[-1] if numbers else 0):
        if number in numbers:
            one_PND = work.step(number, stream_PND, True)
            for other in range(number + 1, numbers[-1] + 1):
                if other in numbers:
                    both = work.finish(other, one_PND, frozenset((other,)))
                    found[work.names[number], work.names[other]] = both
                if other < numbers[-1]:
                    one_PND = work.advanced(other, one_PND)
        stream_PND = work.advanced(number, stream_PND)
        if on_step is not None:
            on_step(number + 1, numbers[-1])
    return found


@torch.no_grad()
def without_more_and_more(
    work: Ablation, order: Sequence[Sequence[str]], counts: Sequence[int]
) -> list[Damage]:
    """The damage of leaving out the first 1, 2, … groups of an order, at the counts given."""
    found = []
    for count in counts:
        gone = frozenset(work.names.index(name) for own in order[:count] for name in own)
        first = min(gone)
        stream_PND = work.stream_PND
        for number in range(first):
            stream_PND = work.advanced(number, stream_PND)
        found.append(work.finish(first, stream_PND, gone))
    return found


@torch.no_grad()
def with_other_weights(
    work: Ablation, anatomy: Anatomy, weights: Mapping[str, BranchWeights]
) -> Damage:
    """The damage when several branches have other weights at once."""
    changed = copy_of(work.model)
    for branch in anatomy.branches:
        if branch.id in weights:
            work.family.assign_(changed, branch, weights[branch.id])
    dense = work.steps
    work.steps = [work.family.through(changed, branch) for branch in anatomy.branches]
    try:
        return work.finish(0, work.stream_PND, frozenset())
    finally:
        work.steps = dense
