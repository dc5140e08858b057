"""Run a model without some of its branches and see how far its output moves.

Legend: B batch, N tokens, D residual width, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.data.batches import Batch, Batches
from secateur.models.family import Family
from secateur.models.types import Anatomy
from secateur.models.walk import Walk
from secateur.statistics.kinds.removal import DAMAGES, Damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The dense model as a walk, some images, and what stands in for a dropped branch.

    `fills[branch]` (D,) is added in its place. `damage` sums over images, see
    `secateur.statistics.kinds.removal`.
    """

    walk: Walk
    chunks: tuple[Batch, ...]
    fills: Mapping[str, Tensor]
    damage: Damage

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return self.walk.names

    @property
    def images(self) -> int:
        """How many images damages are averaged over."""
        return sum(len(chunk.images_BCHW) for chunk in self.chunks)

    @torch.no_grad()
    def damages(
        self, base: frozenset[str], changes: Iterable[frozenset[str]], *, share: float = 1.0
    ) -> list[float]:
        """The damage of each set of dropped branches; those near `base` are cheap.

        What a set has in common with `base` up to the first difference is run once for all.
        `share` looks at that part of the images only.
        """
        wanted = list(changes)
        totals = [0.0] * len(wanted)
        chunks = self.chunks[: max(1, round(share * len(self.chunks)))]
        for chunk in chunks:
            for number, damage in enumerate(self._in_chunk(chunk, base, wanted)):
                totals[number] += damage
        images = sum(len(chunk.images_BCHW) for chunk in chunks)
        return [total / images for total in totals]

    def _in_chunk(
        self, chunk: Batch, base: frozenset[str], wanted: list[frozenset[str]]
    ) -> Iterator[float]:
        embedded_BND = self.walk.embed(chunk.images_BCHW)
        dense_BC = self.walk.finish(embedded_BND).double()
        streams = [embedded_BND, *self.walk.streams(embedded_BND, 0, base, self.fills)]
        for dropped in wanted:
            different = dropped ^ base
            apart = (place for place, name in enumerate(self.names) if name in different)
            first = min(apart, default=len(self.walk))
            changed_BC = self.walk.finish(streams[first], first, dropped, self.fills)
            yield float(self.damage(dense_BC, changed_BC.double(), chunk.labels_B))


def removal(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    batches: Batches,
    images: int,
    fills: Mapping[str, Tensor],
    criterion: str,
) -> Removal:
    """Prepare removals on the first `images` images, measured as a criterion does."""
    return Removal(
        walk=Walk.of(model, family, anatomy),
        chunks=tuple(_first(batches, images)),
        fills=fills,
        damage=DAMAGES[criterion],
    )


def _first(batches: Batches, images: int) -> Iterator[Batch]:
    taken = 0
    for batch in batches:
        if taken >= images:
            return
        room = images - taken
        labels_B = None if batch.labels_B is None else batch.labels_B[:room]
        yield Batch(batch.images_BCHW[:room], labels_B)
        taken += len(batch.images_BCHW[:room])
