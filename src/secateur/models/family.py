"""What a model family must tell so that everything else can work on it. One file per family."""

from typing import Literal, Protocol

from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.hook_points import HookPoint
from secateur.models.types import Anatomy, Branch
from secateur.models.weights import BranchWeights
from secateur.registry import Registry


class Family(Protocol):
    """How to read and change the models of one family.

    Functions whose names end in an underscore change the model they are given. `examples` are
    names for `secateur.load`, one per kind of member, for the table of what is supported.
    """

    name: str
    title: str
    examples: tuple[str, ...]

    def matches(self, model: nn.Module) -> bool:
        """Whether this family can read `model`."""
        ...

    def read(self, model: nn.Module) -> Anatomy:
        """Describe `model`; raise UserError for a member that cannot be supported."""
        ...

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        """The branch's weights in canonical layout (views where possible)."""
        ...

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch copies of these weights; its modules take on their shape.

        New tensors are put in place of the old, which others may hold; none is written into.
        """
        ...

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        """Remove branches with their norms and adds; they leave no module and no graph node."""
        ...

    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        """Add a constant vector to the stream at the place of `branch`, before or after a drop.

        It is folded into the bias of the nearest earlier writer, at the latest into the
        embedding, so that it costs nothing.
        """
        ...

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """LayerScale of the branch (D,), or None: update = scale * writer's output."""
        ...

    def writer_shift(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """A constant (D,) that is added behind the writer and its scale, or None."""
        ...

    def writes_linearly(self, model: nn.Module, branch: Branch) -> bool:
        """Whether the update is linear in what the writer gives (false with a norm behind it)."""
        ...

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """The residual stream (B, N, D) as the embedding leaves it."""
        ...

    def arrive(self, model: nn.Module, branch: Branch, stream_BND: Tensor) -> Tensor:
        """The stream at `branch` from that after the branch before it (or the embedding).

        The same, unless something stands between that is no branch, such as downsampling.
        """
        ...

    def alone(self, model: nn.Module, branch: Branch) -> nn.Module:
        """One branch as a module from the stream at it to that after it; shares its modules."""
        ...

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        """`arrive` and `alone` in one module, from the stream after the branch before it."""
        ...

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        """What the model makes of the stream after the last branch, with all that follows it."""
        ...

    def hook_points(self, model: nn.Module, branch: Branch) -> dict[str, HookPoint]:
        """Where the quantities of a branch can be seen; see `secateur.models.hook points`."""
        ...


families: Registry[Family] = Registry("model family", "secateur.models.families")


def family_of(model: nn.Module) -> Family:
    """The family that reads `model`; UserError listing the known families if there is none."""
    for _, family in families.items():
        if family.matches(model):
            return family
    known = "; ".join(family.title for _, family in families.items())
    raise UserError(
        f"model class {type(model).__module__}.{type(model).__qualname__} belongs to no family "
        f"that secateur can read; known families: {known}."
    )


def stated_names(kind: Literal["caches", "switches", "positions"]) -> frozenset[str]:
    """Attributes that hosts of any known family have for this.

    `caches` hold dictionaries of what was worked out from weights, `switches` say whether a layer
    takes a fused kernel for its attention, `positions` are tables that follow the image size.
    """
    return frozenset(name for _, family in families.items() for name in getattr(family, kind, ()))


def read(model: nn.Module) -> Anatomy:
    """The anatomy of `model`: its stream, branches and groups. Changes nothing."""
    return family_of(model).read(model)
