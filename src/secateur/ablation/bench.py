"""The dense model with one branch changed at a time, run on a few images that are kept.

Legend: B batch, N tokens, D residual width, C outputs, P probe images.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.measurement.divergence import damage, settled
from secateur.models.caches import shell_of
from secateur.models.family import Family
from secateur.models.types import Anatomy, Branch
from secateur.models.walk import NO_FILLS, Walk
from secateur.models.weights import BranchWeights

AT_ONCE = 32
"""Probe images that run through the model at a time."""


@dataclass(slots=True)
class Bench:
    """The dense model as a walk, a scratch copy for one changed branch, and the stream of the
    probe images before the branch at hand."""

    walk: Walk
    scratch: nn.Module
    stream_PND: Tensor
    dense_PC: Tensor
    classes: int

    @staticmethod
    def of(model: nn.Module, family: Family, anatomy: Anatomy, images_PCHW: Tensor) -> "Bench":
        walk = Walk.of(model, family, anatomy)
        stream_PND = walk.embed(images_PCHW)
        dense_PC = outputs(walk, stream_PND, 0, anatomy.num_classes)
        return Bench(walk, shell_of(model), stream_PND, dense_PC, anatomy.num_classes)

    def put(self, branch: Branch, weights: BranchWeights) -> None:
        """Give the scratch model's branch these weights."""
        self.walk.family.assign_(self.scratch, branch, weights)

    def changed(self, branch: Branch) -> Tensor:
        """The stream after the scratch model's branch."""
        after: Tensor = self.walk.family.through(self.scratch, branch)(self.stream_PND)
        return after

    def advance(self, place: int) -> None:
        """Move on to the next branch."""
        self.stream_PND = advanced(self.walk, place, self.stream_PND)

    def divergence(self, start: int, stream_PND: Tensor) -> float:
        """Mean divergence of this stream run through the steps from `start`, in nats."""
        changed_PC = outputs(self.walk, stream_PND, start, self.classes)
        return damage(self.dense_PC, changed_PC, self.classes).divergence

    def divergence_of(self, model: nn.Module, images_PCHW: Tensor) -> float:
        """Mean divergence of another model on the probe images, in nats."""
        changed_PC = torch.cat(
            [settled(model(x_BCHW), self.classes) for x_BCHW in images_PCHW.split(AT_ONCE)]
        )
        return damage(self.dense_PC, changed_PC, self.classes).divergence


def outputs(
    walk: Walk,
    stream_PND: Tensor,
    start: int,
    classes: int,
    without: Collection[str] = (),
    fills: Mapping[str, Tensor] = NO_FILLS,
) -> Tensor:
    """What the model says of probe images from their stream before step `start`."""
    parts = [walk.finish(x_BND, start, without, fills) for x_BND in stream_PND.split(AT_ONCE)]
    return torch.cat([settled(part, classes) for part in parts])


def advanced(walk: Walk, place: int, stream_PND: Tensor) -> Tensor:
    """The stream of all probe images after one branch."""
    return torch.cat([walk.step(place, x_BND) for x_BND in stream_PND.split(AT_ONCE)])


def held_images(batches: Iterator[Tensor], every: int, images: int) -> Tensor:
    """The first `images` images of the batches that the fit holds out; more are not read."""
    taken: list[Tensor] = []
    for number, batch in enumerate(batches):
        if number % every == every - 1:
            taken.append(batch)
            if sum(map(len, taken)) >= images:
                break
    found = torch.cat(taken) if taken else torch.empty(0)
    return found[:images]
