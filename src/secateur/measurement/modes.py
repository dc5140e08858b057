"""How a model stands while it is looked at, and how it is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in evaluation mode and every module back in its own mode afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def example_images(
    model: nn.Module, input_size: tuple[int, int, int], batch: int, seed: int = 0
) -> Tensor:
    """Standard normal images (batch, *input_size) in the type and on the device of `model`."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images_BCHW = torch.randn(batch, *input_size, generator=torch.Generator().manual_seed(seed))
    return images_BCHW.to(device=like.device, dtype=like.dtype)
