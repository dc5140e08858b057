"""Run a model without some of its branches and see how far its output moves.

Legend: B batch, N tokens, D residual width, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.anatomy.family import Family
from secateur.anatomy.types import Anatomy, Branch
from secateur.data.batches import Batch, Batches
from secateur.evidence.sorts.removal import DAMAGES, Damage


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The dense model as a row of steps, some images, and what stands in for a dropped branch.

    `fills[branch]` (D,) is added in its place. `damage` sums over images, see
    `secateur.evidence.sorts.removal`.
    """

    family: Family
    model: nn.Module
    branches: tuple[Branch, ...]
    steps: tuple[nn.Module, ...]
    chunks: tuple[Batch, ...]
    fills: Mapping[str, Tensor]
    damage: Damage

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return [branch.id for branch in self.branches]

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
        embedded_BND = self.family.embed(self.model, chunk.images_BCHW)
        dense_BC = self._outputs(self._run(embedded_BND, frozenset(), 0))
        streams = [embedded_BND]
        for place in range(len(self.names)):
            streams.append(self._step(streams[-1], base, place))
        for dropped in wanted:
            different = dropped ^ base
            if not different:
                yield float(self.damage(dense_BC, self._outputs(streams[-1]), chunk.labels_B))
                continue
            first = min(place for place, name in enumerate(self.names) if name in different)
            changed_BC = self._outputs(self._run(streams[first], dropped, first))
            yield float(self.damage(dense_BC, changed_BC, chunk.labels_B))

    def _run(self, x_BND: Tensor, dropped: frozenset[str], start: int) -> Tensor:
        for place in range(start, len(self.names)):
            x_BND = self._step(x_BND, dropped, place)
        return x_BND

    def _step(self, x_BND: Tensor, dropped: frozenset[str], place: int) -> Tensor:
        branch = self.branches[place]
        if branch.id not in dropped:
            after_BND: Tensor = self.steps[place](x_BND)
            return after_BND
        x_BND = self.family.arrive(self.model, branch, x_BND)
        fill_D = self.fills.get(branch.id)
        return x_BND if fill_D is None else x_BND + fill_D.to(x_BND)

    def _outputs(self, x_BND: Tensor) -> Tensor:
        return self.family.head(self.model, x_BND).double()


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
        family=family,
        model=model,
        branches=anatomy.branches,
        steps=tuple(family.through(model, branch).eval() for branch in anatomy.branches),
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
