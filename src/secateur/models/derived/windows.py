"""Attention inside windows of a grid of tokens.

The grid is shifted, padded with zeros to whole windows and cut into these. Tokens of the padding
are keys like all others; tokens that the shift brings together from two ends of the grid do not see
each other. Source: Swin, ICCV 2021, arXiv 2103.14030, §3.2.

Legend: B batch, R rows and C columns of the grid, N tokens (R C), W windows, T tokens of a window,
D channels.
"""

from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

Sides = tuple[int, int]
APART = -100.0
"""What is added to the logits of two tokens that do not see each other."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `size` (rows, columns) on a `grid`, which is rolled by `shift` towards zero."""

    size: Sides
    shift: Sides = (0, 0)
    grid: Sides = (0, 0)

    def on(self, grid: Sides) -> "Windows":
        """The same windows on another grid."""
        return self if grid == self.grid else replace(self, grid=grid)

    @property
    def numbers(self) -> Sides:
        """Windows in a column and in a row."""
        return (-(-self.grid[0] // self.size[0]), -(-self.grid[1] // self.size[1]))

    @property
    def count(self) -> int:
        """W, the windows of an image."""
        return prod(self.numbers)

    @property
    def tokens(self) -> int:
        """T, the tokens of a window, padding included."""
        return prod(self.size)

    @property
    def padded(self) -> bool:
        """Whether some windows hold padding."""
        return self.count * self.tokens > prod(self.grid)

    def split(self, x_BRCD: Tensor) -> Tensor:
        """The tokens of each window, (B W, T, D)."""
        (rows, columns), (high, wide) = self.numbers, self.size
        if any(self.shift):
            x_BRCD = torch.roll(x_BRCD, (-self.shift[0], -self.shift[1]), (1, 2))
        if self.padded:
            more = (rows * high - self.grid[0], columns * wide - self.grid[1])
            x_BRCD = F.pad(x_BRCD, (0, 0, 0, more[1], 0, more[0]))
        parts = x_BRCD.reshape(-1, rows, high, columns, wide, x_BRCD.shape[-1])
        return parts.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, x_WTD: Tensor) -> Tensor:
        """The grid (B, R, C, D) of the tokens of all windows (B W, T, D), without padding."""
        (rows, columns), (high, wide) = self.numbers, self.size
        parts = x_WTD.reshape(-1, rows, columns, high, wide, x_WTD.shape[-1])
        x_BRCD = parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.padded:
            x_BRCD = x_BRCD[:, : self.grid[0], : self.grid[1]].contiguous()
        return torch.roll(x_BRCD, self.shift, (1, 2)) if any(self.shift) else x_BRCD

    def mask(self, like: Tensor) -> Tensor | None:
        """What is added to the logits (W, T, T) in the type of `like`; None without a shift."""
        if not any(self.shift):
            return None
        ends = [self._parts(axis, like.device) for axis in (0, 1)]
        part_RC = 3 * ends[0][:, None] + ends[1]
        plain = Windows(self.size, grid=(part_RC.shape[0], part_RC.shape[1]))
        part_WT = plain.split(part_RC[None, ..., None])[..., 0]
        return (part_WT[:, None] != part_WT[:, :, None]).to(like.dtype) * APART

    def _parts(self, axis: int, device: torch.device) -> Tensor:
        """Which of the three parts of an axis, as the shift leaves it, a place belongs to."""
        size, shift = self.size[axis], self.shift[axis]
        length = self.numbers[axis] * size
        place = torch.arange(length, device=device)
        return (place >= length - size).long() * bool(shift) + (place >= length - shift).long()

    def places(self, device: torch.device) -> Tensor:
        """Where each token of the grid (N,) stands among the W T places of the windows."""
        number = torch.arange(self.count * self.tokens, device=device)
        return self.join(number.view(self.count, self.tokens, 1)).flatten()

    def in_order(self, x_WTU: Tensor) -> Tensor:
        """What was seen in windows, (B W, T, …), in the order of the grid: (B, N, …)."""
        x_BPU: Tensor = x_WTU.unflatten(0, (-1, self.count)).flatten(1, 2)
        return x_BPU[:, self.places(x_WTU.device)]

    def placed(self, weights_N: Tensor) -> Tensor:
        """Weights of tokens by place in the windows (W, T), zero for padding."""
        empty = weights_N.new_zeros(self.count * self.tokens)
        whole = empty.index_copy(0, self.places(weights_N.device), weights_N)
        return whole.view(self.count, self.tokens)
