"""Modules for MetaFormer blocks, whose early stages work on grids instead of rows of tokens.

Legend: B batch, N tokens, D residual width, H and W sides of the grid (N = H W).
"""

from typing import Final

import torch
from torch import Tensor, nn


class MixerPart(nn.Module):
    """The token mixer of a block: what remains when its MLP was dropped."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1 = getattr(block, "norm1", None) or nn.Identity()
        self.token_mixer = block.get_submodule("token_mixer")
        self.ls1, self.drop_path1 = block.get_submodule("ls1"), block.get_submodule("drop_path1")

    def forward(self, x: Tensor) -> Tensor:
        """Add the mixer's update to a stream of tokens (B, N, D) or a grid (B, D, H, W)."""
        update: Tensor = self.drop_path1(self.ls1(self.token_mixer(self.norm1(x))))
        return x + update


class MlpPart(nn.Module):
    """The MLP of a block: what remains when its attention was dropped."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm2 = getattr(block, "norm2", None) or nn.Identity()
        self.mlp = block.get_submodule("mlp")
        self.ls2, self.drop_path2 = block.get_submodule("ls2"), block.get_submodule("drop_path2")

    def forward(self, x: Tensor) -> Tensor:
        """Add the MLP's update to a stream of tokens (B, N, D) or a grid (B, D, H, W)."""
        update: Tensor = self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x + update


class OnGrid(nn.Module):
    """Modules that work on a grid, between streams of tokens."""

    def __init__(self, side: int, *modules: nn.Module) -> None:
        super().__init__()
        self.side: Final[int] = side
        self.inner = nn.Sequential(*modules)

    def forward(self, x_BND: Tensor) -> Tensor:
        """From (B, N, D) to (B, N', D'); modules may change the number of tokens and the width."""
        grid_BDHW = x_BND.transpose(1, 2).unflatten(2, (self.side, self.side))
        return as_tokens(self.inner(grid_BDHW))


class ShiftedReLU(nn.ReLU):
    """relu(x) + bias on a grid: it carries a constant of the stream that nothing earlier can."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, grid_BDHW: Tensor) -> Tensor:
        """The sum of both."""
        return super().forward(grid_BDHW) + self.bias[:, None, None]


def as_tokens(grid_BDHW: Tensor) -> Tensor:
    """The view (B, N, D) of a grid; shares its memory."""
    return grid_BDHW.flatten(2).transpose(1, 2)
