"""Which attention kernel trains faster: on CPUs in bfloat16 the plain one, by far."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from secateur.models.caches import stated_names, unfused


@contextmanager
def fast_attention(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Take attention apart where that is faster, for the length of a `with` block.

    WHY: on CPUs the backward pass of torch's fused attention takes over half of a training step in
    bfloat16, since it falls back to slow loops; matrix products and a softmax do not.
    """
    slow = device.type == "cpu" and precision == "bf16"
    with unfused(model, stated_names("fused")) if slow else nullcontext():
        yield
