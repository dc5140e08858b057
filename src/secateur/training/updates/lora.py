"""Low-rank updates for models too large to be trained whole.

W + B A with A (r, in) and B (out, r) for every linear layer inside the blocks (Hu et al., arXiv
2106.09685); only A and B train, and are added to W in the end. At high pruning ratios training all
weights gains more (Shortened LLaMA, arXiv 2402.02834), so this is for want of memory only.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.errors import UserError


class LowRank(nn.Module):
    """Adds B A to a weight; nothing at first, since B starts as zeros."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        down = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        self.down_RI = nn.Parameter(down.to(weight))
        self.up_OR = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        """The weight with its update."""
        return weight_OI + self.up_OR @ self.down_RI


def attach_(model: nn.Module, rank: int, seed: int = 0) -> list[nn.Linear]:
    """Freeze the model and give its linear layers updates of a rank; returns the layers.

    The classifier, which is small and stands alone, trains whole. UserError for a rank that is no
    smaller than a layer.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    layers = [module for name, module in found if "." in name]
    if not layers:
        raise UserError("the model has no linear layers inside blocks; leave lora_rank out.")
    most = min(min(layer.weight.shape) for layer in layers)
    if rank >= most:
        raise UserError(f"lora_rank {rank} is no smaller than the smallest layer ({most}).")
    model.requires_grad_(False)
    for layer in layers:
        update = LowRank(layer.weight, rank, generator)
        parametrize.register_parametrization(layer, "weight", update)
    for name, module in found:
        if "." not in name:
            module.requires_grad_(True)
    return layers


def merge_(layers: list[nn.Linear]) -> None:
    """Add the updates to the weights; the layers are plain again and may be trained."""
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.requires_grad_(True)
