"""The model without some of its branches: one at a time, in pairs, more and more, or any sets.

A branch that is left out is replaced by a constant, its mean update unless nothing stands in for
it, which costs nothing when it is folded into a bias. Every result is measured on the whole model.
Legend: B batch, P probe images, N tokens, D residual width, C outputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.ablation.probe_runner import ProbeRunner
from secateur.data.batches import Batch, Batches
from secateur.data.split import first_images
from secateur.models.host import Host
from secateur.models.runner import Runner
from secateur.statistics.divergence import (
    Degradation,
    LossName,
    OutputLoss,
    blind,
    loss_for,
    output_losses,
    spread,
)

OnStep = Callable[[int, int], None]


@torch.no_grad()
def without_each(
    probe: ProbeRunner, groups: Mapping[str, Sequence[str]], on_step: OnStep | None = None
) -> dict[str, Degradation]:
    """The degradation without each group of branches alone; a group's branches are neighbours."""
    starts = {min(map(probe.names.index, own)): name for name, own in groups.items()}
    found: dict[str, Degradation] = {}
    stream_PND = probe.start_PND
    for number in range(len(probe.runner)):
        if number in starts:
            name = starts[number]
            found[name] = probe.finish(number, stream_PND, groups[name])
        if number + 1 < len(probe.runner):
            stream_PND = probe.advanced(number, stream_PND)
        if on_step is not None:
            on_step(number + 1, len(probe.runner))
    return found


@torch.no_grad()
def in_pairs(
    probe: ProbeRunner, chosen: Sequence[str], on_step: OnStep | None = None
) -> dict[tuple[str, str], Degradation]:
    """The degradation of leaving out each two of the chosen branches; pairs in stream order."""
    numbers = sorted(map(probe.names.index, chosen))
    found: dict[tuple[str, str], Degradation] = {}
    stream_PND = probe.start_PND
    for number in range(numbers[-1] if numbers else 0):
        if number in numbers:
            one_PND = probe.without(number, stream_PND)
            for other in range(number + 1, numbers[-1] + 1):
                if other in numbers:
                    both = probe.finish(other, one_PND, (probe.names[other],))
                    found[probe.names[number], probe.names[other]] = both
                if other < numbers[-1]:
                    one_PND = probe.advanced(other, one_PND)
        stream_PND = probe.advanced(number, stream_PND)
        if on_step is not None:
            on_step(number + 1, numbers[-1])
    return found


@torch.no_grad()
def without_more_and_more(
    probe: ProbeRunner, order: Sequence[Sequence[str]], counts: Sequence[int]
) -> list[Degradation]:
    """The degradation of leaving out the first 1, 2, … groups of an order, at the counts given."""
    found = []
    for count in counts:
        gone = frozenset(name for own in order[:count] for name in own)
        first = min(map(probe.names.index, gone))
        stream_PND = probe.start_PND
        for number in range(first):
            stream_PND = probe.advanced(number, stream_PND)
        found.append(probe.finish(first, stream_PND, gone))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A dense model and some batches, to leave out any set of branches.

    Streams are not kept, so that memory does not grow with the number of images. `fills[branch]`
    (D,) is added in the place of a branch; `loss` sums over images, and `compared` says what it
    is normalised by, see `secateur.statistics.divergence.spread`.
    """

    runner: Runner
    chunks: tuple[Batch, ...]
    fills: Mapping[str, Tensor]
    loss: OutputLoss
    compared: LossName

    @torch.no_grad()
    def degradations(
        self, base: frozenset[str], changes: Iterable[frozenset[str]], *, share: float = 1.0
    ) -> list[float]:
        """The mean loss over images of each set of dropped branches; those near `base` are cheap.

        The steps that a set has in common with `base` up to the first difference are run once.
        `share` looks at that part of the images only. UserError where outputs change, but the loss
        of every set is 0.
        """
        wanted = list(changes)
        totals = [0.0] * len(wanted)
        dense: list[Tensor] = []
        chunks = self.chunks[: max(1, round(share * len(self.chunks)))]
        moved = False
        for chunk in chunks:
            for number, (loss, other) in enumerate(self._in_chunk(chunk, base, wanted, dense)):
                totals[number] += loss
                moved = moved or other
        images = sum(len(chunk.images_BCHW) for chunk in chunks)
        if moved and len(wanted) > 1 and not any(totals):
            raise blind(self.compared)
        scale = images * spread(torch.cat(dense), self.compared)
        return [total / scale for total in totals]

    def _in_chunk(
        self,
        chunk: Batch,
        base: frozenset[str],
        wanted: list[frozenset[str]],
        dense: list[Tensor],
    ) -> Iterator[tuple[float, bool]]:
        """The loss of each set, summed, and whether outputs changed; fills `dense` with theirs."""
        outputs = self.runner.without_each(chunk.images_BCHW, base, wanted, self.fills)
        dense_BC = next(outputs).double()
        dense.append(dense_BC)
        for changed_BC in outputs:
            loss = float(self.loss(dense_BC, changed_BC.double(), chunk.labels_B))
            yield loss, not torch.equal(dense_BC, changed_BC.double())


def removal(
    host: Host,
    batches: Batches,
    images: int,
    fills: Mapping[str, Tensor],
    criterion: str,
    loss: LossName | None = None,
) -> Removal:
    """Prepare removals on the first `images` images, measured as a criterion does."""
    loss = loss or loss_for(host.anatomy.num_classes)
    return Removal(
        runner=Runner.of(host),
        chunks=tuple(first_images(batches, images)),
        fills=fills,
        loss=output_losses(loss)[criterion],
        compared=loss if criterion == "delta_kl" else "kl",
    )
