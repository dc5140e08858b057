"""Which attention kernel trains faster: on CPUs in bfloat16 the plain one, by far."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def fast_attention(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Take attention apart where that is faster, for the length of a `with` block.

    WHY: on CPUs the backward pass of torch's fused attention takes over half of a training step in
    bfloat16, since it falls back to slow loops; matrix products and a softmax do not.
    """
    slow = device.type == "cpu" and precision == "bf16"
    taken = set_fused_(model, False) if slow else []
    try:
        yield
    finally:
        for module in taken:
            module.fused_attn = True  # type: ignore[assignment]


def set_fused_(model: nn.Module, fused: bool) -> list[nn.Module]:
    """Switch timm's fused attention on or off; returns the modules that changed."""
    changed = [m for m in model.modules() if getattr(m, "fused_attn", None) is (not fused)]
    for module in changed:
        module.fused_attn = fused  # type: ignore[assignment]
    return changed
