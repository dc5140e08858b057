"""A model bound to its family and anatomy: what all rooms behind `models` are given."""

from dataclasses import dataclass

from torch import Tensor, nn

from secateur.models.family import Family, family_of
from secateur.models.hook_points import HookPoint
from secateur.models.types import Anatomy, Branch
from secateur.models.weights import BranchWeights


@dataclass(frozen=True, slots=True)
class Host:
    """A model, the family that reads it, and its anatomy when it was read.

    Surgery changes the model under its host: the anatomy stays that of the uncut model.
    """

    model: nn.Module
    family: Family
    anatomy: Anatomy

    def with_model(self, model: nn.Module) -> "Host":
        """The host of another model of the same anatomy, such as a copy."""
        return Host(model, self.family, self.anatomy)

    def weights(self, branch: Branch) -> BranchWeights:
        """The branch's weights in canonical layout (views where possible)."""
        return self.family.weights(self.model, branch)

    def assign_(self, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch copies of these weights; its modules take on their shape."""
        self.family.assign_(self.model, branch, weights)

    def hook_points(self, branch: Branch) -> dict[str, HookPoint]:
        """Where the quantities of a branch can be seen; see `secateur.models.hook_points`."""
        return self.family.hook_points(self.model, branch)

    def through(self, branch: Branch) -> nn.Module:
        """A module from the stream after the branch before to that after this one."""
        return self.family.through(self.model, branch)

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """The residual stream (B, N, D) as the embedding leaves it."""
        return self.family.embed(self.model, images_BCHW)

    def writes_linearly(self, branch: Branch) -> bool:
        """Whether the update is linear in what the writer gives."""
        return self.family.writes_linearly(self.model, branch)


def host_of(model: nn.Module) -> Host:
    """The host of a model; UserError where no family reads it."""
    family = family_of(model)
    return Host(model, family, family.read(model))
