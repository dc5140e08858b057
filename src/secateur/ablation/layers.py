"""What the model says without some of its branches: one at a time, in pairs, more and more.

A branch that is left out is replaced by its mean update, which costs nothing when it is folded
into a bias. Every result is measured on the whole model; `steps_run` counts what that took.
Legend: P probe images, N tokens, D residual width, C outputs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.ablation.bench import AT_ONCE, advanced, outputs
from secateur.ablation.probe import mean_update
from secateur.measurement.divergence import Damage, damage
from secateur.models.caches import shell_of
from secateur.models.family import Family
from secateur.models.types import Anatomy
from secateur.models.walk import Walk
from secateur.models.weights import BranchWeights
from secateur.statistics import Evidence

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Ablation:
    """A dense model as a walk, with the stream of the probe images before its first step.

    `means` are the mean updates (D,) that stand for left-out branches. `steps_run` grows by one
    for every step that all probe images went through.
    """

    walk: Walk
    classes: int
    means: dict[str, Tensor]
    stream_PND: Tensor
    dense_PC: Tensor
    steps_run: float = 0.0

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return self.walk.names

    def finish(self, start: int, stream_PND: Tensor, without: Collection[str] = ()) -> Damage:
        """Run the steps from `start`, all but those left out, and compare with the dense model."""
        left = sum(name in without for name in self.names[start:])
        self.steps_run += len(self.walk) - start - left
        changed_PC = outputs(self.walk, stream_PND, start, self.classes, without, self.means)
        return damage(self.dense_PC, changed_PC, self.classes)

    def without(self, place: int, stream_PND: Tensor) -> Tensor:
        """The stream of all probe images after the mean of one branch."""
        return self.walk.skip(place, stream_PND, self.means[self.names[place]])

    def advanced(self, place: int, stream_PND: Tensor) -> Tensor:
        """The stream of all probe images after one branch."""
        self.steps_run += 1
        return advanced(self.walk, place, stream_PND)


@torch.no_grad()
def ablation(
    model: nn.Module, family: Family, anatomy: Anatomy, evidence: Evidence, images_PCHW: Tensor
) -> Ablation:
    """Embed the probe images and run the dense model on them; needs the mean updates."""
    walk = Walk.of(model, family, anatomy)
    stream_PND = torch.cat([walk.embed(part) for part in images_PCHW.split(AT_ONCE)])
    return Ablation(
        walk=walk,
        classes=anatomy.num_classes,
        means={name: mean_update(evidence.about(name)) for name in walk.names},
        stream_PND=stream_PND,
        dense_PC=outputs(walk, stream_PND, 0, anatomy.num_classes),
        steps_run=len(walk),
    )


@torch.no_grad()
def without_each(
    work: Ablation, groups: Mapping[str, Sequence[str]], on_step: Progress | None = None
) -> dict[str, Damage]:
    """The damage of leaving out each group of branches alone; a group's branches are neighbours."""
    starts = {min(map(work.names.index, own)): name for name, own in groups.items()}
    found: dict[str, Damage] = {}
    stream_PND = work.stream_PND
    for number in range(len(work.walk)):
        if number in starts:
            name = starts[number]
            found[name] = work.finish(number, stream_PND, groups[name])
        if number + 1 < len(work.walk):
            stream_PND = work.advanced(number, stream_PND)
        if on_step is not None:
            on_step(number + 1, len(work.walk))
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
            one_PND = work.without(number, stream_PND)
            for other in range(number + 1, numbers[-1] + 1):
                if other in numbers:
                    both = work.finish(other, one_PND, (work.names[other],))
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
        gone = frozenset(name for own in order[:count] for name in own)
        first = min(map(work.names.index, gone))
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
    walk = work.walk
    changed = shell_of(walk.model)
    for branch in anatomy.branches:
        if branch.id in weights:
            walk.family.assign_(changed, branch, weights[branch.id])
    other = Walk.of(changed, walk.family, anatomy)
    work.steps_run += len(walk)
    changed_PC = outputs(other, work.stream_PND, 0, work.classes)
    return damage(work.dense_PC, changed_PC, work.classes)
