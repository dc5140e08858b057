"""A model as a row of steps, one per branch, that can be begun anywhere and leave branches out.

Legend: B batch, N tokens, D residual width.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.models.family import Family
from secateur.models.types import Anatomy, Branch

NO_FILLS: Mapping[str, Tensor] = {}


@dataclass(frozen=True, slots=True)
class Walk:
    """`steps[i]` takes the stream through `branches[i]`, from where the branch before left it."""

    family: Family
    model: nn.Module
    branches: tuple[Branch, ...]
    steps: tuple[nn.Module, ...]

    @staticmethod
    def of(model: nn.Module, family: Family, anatomy: Anatomy) -> "Walk":
        steps = tuple(family.through(model, branch) for branch in anatomy.branches)
        return Walk(family, model, anatomy.branches, steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return [branch.id for branch in self.branches]

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """The stream before the first step."""
        return self.family.embed(self.model, images_BCHW)

    def step(self, place: int, x_BND: Tensor) -> Tensor:
        """The stream after one branch."""
        after_BND: Tensor = self.steps[place](x_BND)
        return after_BND

    def skip(self, place: int, x_BND: Tensor, fill_D: Tensor | None = None) -> Tensor:
        """The stream after a branch that is left out, with a constant (D,) in its place."""
        arrived_BND = self.family.arrive(self.model, self.branches[place], x_BND)
        return arrived_BND if fill_D is None else arrived_BND + fill_D.to(arrived_BND)

    def streams(
        self,
        x_BND: Tensor,
        start: int = 0,
        without: Collection[str] = (),
        fills: Mapping[str, Tensor] = NO_FILLS,
    ) -> Iterator[Tensor]:
        """The stream after each branch from `start` on, but for those `without`, which are left
        out with their fills in place."""
        for place in range(start, len(self.steps)):
            name = self.branches[place].id
            if name in without:
                x_BND = self.skip(place, x_BND, fills.get(name))
            else:
                x_BND = self.step(place, x_BND)
            yield x_BND

    def finish(
        self,
        x_BND: Tensor,
        start: int = 0,
        without: Collection[str] = (),
        fills: Mapping[str, Tensor] = NO_FILLS,
    ) -> Tensor:
        """The model's outputs from the stream before step `start`."""
        for after_BND in self.streams(x_BND, start, without, fills):
            x_BND = after_BND
        return self.family.head(self.model, x_BND)
