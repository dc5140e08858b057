"""What goes into a model to measure it, and what comes out of it."""

import torch
from torch import Tensor, nn


def example_images(
    model: nn.Module, input_size: tuple[int, int, int], batch: int, seed: int = 0
) -> Tensor:
    """Standard normal images (batch, *input_size) in the type and on the device of `model`."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images_BCHW = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(seed))
    return images_BCHW.to(device=like.device, dtype=like.dtype)
