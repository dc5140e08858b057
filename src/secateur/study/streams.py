"""The dense stream of the evaluation images, kept so that pruned models start where they differ.

Legend: B batch, N tokens, D residual width, C classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.models.host import Host
from secateur.models.runner import Runner
from secateur.models.types import Anatomy

LIMIT = 2**30
"""Bytes that kept streams may take; where all of them take more, they are kept at fewer blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What passes at some blocks of a dense model: a stream (B, N, D) per batch.

    `kept[place]` is the stream before branch number `place`; 0 is always there. `weights` are the
    dense model's.
    """

    host: Host
    weights: Mapping[str, Tensor]
    kept: Mapping[int, list[Tensor]]

    @torch.inference_mode()
    def logits(self, smaller: nn.Module) -> list[Tensor] | None:
        """Logits (B, C) of a pruned copy by batch; None where it differs before the first block.

        Blocks before the first one with other weights are not run again.
        """
        first = _first_difference(self.host.anatomy, self.weights, smaller.state_dict())
        if first is None:
            return None
        start = max(place for place in self.kept if place <= first)
        runner = Runner.of(smaller)
        before = {branch.id for branch in self.host.anatomy.branches[:start]}
        place = sum(name in before for name in runner.names)
        return [runner.finish(x_BND, place) for x_BND in self.kept[start]]


@torch.inference_mode()
def keep_streams(host: Host, images: Iterable[Tensor]) -> tuple[Streams, list[Tensor]]:
    """Run batches of images (B, 3, H, W) through the dense model; its streams and its logits."""
    parameter = next(host.model.parameters())
    runner = Runner.of(host)
    embedded = [runner.embed(x_BCHW.to(parameter)) for x_BCHW in images]
    wanted = _places(host.anatomy, sum(len(x_BND) for x_BND in embedded), parameter.element_size())
    kept: dict[int, list[Tensor]] = {place: [] for place in wanted}
    logits = []
    for x_BND in embedded:
        for place in range(len(runner)):
            if place in kept:
                kept[place].append(x_BND)
            x_BND = runner.step(place, x_BND)
        logits.append(runner.finish(x_BND, len(runner)))
    return Streams(host=host, weights=host.model.state_dict(), kept=kept), logits


def _starts(anatomy: Anatomy) -> list[int]:
    """The number of the first branch of every block."""
    return [
        place
        for place, branch in enumerate(anatomy.branches)
        if place == 0 or branch.block != anatomy.branches[place - 1].block
    ]


def _places(anatomy: Anatomy, images: int, size: int) -> list[int]:
    """Where streams are kept: at every block, or at every n-th, so that they fit the limit."""
    starts = _starts(anatomy)
    branches = [anatomy.branches[place] for place in starts]
    each = [branch.tokens * branch.width * images * size for branch in branches]
    step = 1
    while step < len(starts) and sum(each[::step]) > LIMIT:
        step += 1
    return starts[::step]


def _first_difference(
    anatomy: Anatomy, dense: Mapping[str, Tensor], smaller: Mapping[str, Tensor]
) -> int | None:
    """The first branch of the first block with other weights; None if others differ as well."""
    changed = [
        name
        for name in dense.keys() | smaller.keys()
        if name not in dense or name not in smaller or not torch.equal(dense[name], smaller[name])
    ]
    blocks = {f"{block.id}.": block for block in anatomy.blocks if block.branches}
    places = {branch.id: place for place, branch in enumerate(anatomy.branches)}
    found = [len(anatomy.branches)]
    for name in changed:
        owners = [block for prefix, block in blocks.items() if name.startswith(prefix)]
        if not owners:
            return None
        found.append(places[owners[0].branches[0]])
    return min(found)
