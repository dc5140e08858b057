"""The modules of a timm-style block that make up one branch, with the types that they have.

timm numbers them: norm1, attn, ls1 and drop_path1 are one branch, norm2, mlp, ls2 and drop_path2
the other. `nn.Module` knows nothing of its parts' types, so they are told apart here, once.
"""

from dataclasses import dataclass
from typing import Literal

from timm.layers import GluMlp, LayerScale, Mlp, SwiGLU
from timm.layers.attention import Attention
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from secateur.errors import UserError
from secateur.models.modules import LinearStandIn, SlimAttention

PartName = Literal["attn", "mlp"]
PARTS: tuple[PartName, ...] = ("attn", "mlp")

AnyAttention = Attention | SlimAttention
AnyMlp = Mlp | GluMlp | SwiGLU


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One branch in its block: update = scale(module(norm(x))), or norm(module(x)) post-norm."""

    module: nn.Module
    norm: nn.Module
    scale: LayerScale | None
    post_norm: bool

    @property
    def is_stand_in(self) -> bool:
        """Whether a linear layer stands where the branch was."""
        return isinstance(self.module, LinearStandIn)

    @property
    def writer(self) -> nn.Linear:
        """The linear layer that writes what is added to the stream."""
        if isinstance(self.module, LinearStandIn):
            return self.module
        return linear(self.module, "fc2" if hasattr(self.module, "fc2") else "proj")

    @property
    def vectors(self) -> list[nn.Module]:
        """The modules that hold only vectors of the residual width."""
        return [self.norm] if self.scale is None else [self.norm, self.scale]


def is_post_norm(block: nn.Module) -> bool:
    """Whether the norms of a block stand behind its branches."""
    return isinstance(block, ResPostBlock) or getattr(block, "post_norm", False) is True


def place(block: nn.Module, part: PartName) -> Place | None:
    """One branch of a block, or the linear layer in its place; None where it was dropped."""
    if not hasattr(block, part):
        return None
    number = PARTS.index(part) + 1
    scale = getattr(block, f"ls{number}", None)
    return Place(
        module=block.get_submodule(part),
        norm=block.get_submodule(f"norm{number}"),
        scale=scale if isinstance(scale, LayerScale) else None,
        post_norm=is_post_norm(block),
    )


def linear(module: nn.Module, name: str) -> nn.Linear:
    """A linear layer inside a module; UserError when it is of another kind (say, quantised)."""
    found = module.get_submodule(name)
    if not isinstance(found, nn.Linear):
        raise UserError(
            f"'{name}' of a {type(module).__name__} is a {type(found).__name__}, not a Linear; "
            "prune before quantising, adapting or otherwise wrapping the layers."
        )
    return found


def readers(mlp: AnyMlp) -> list[nn.Linear]:
    """The layers that read the stream for an MLP: the gate comes first where it is apart."""
    names = ("fc1_g", "fc1_x") if isinstance(mlp, SwiGLU) else ("fc1",)
    return [linear(mlp, name) for name in names]
