"""Parameters and multiply-accumulates as counted in a forward pass, not as predicted."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.measurement.modes import example_images
from secateur.models.caches import evaluating, forget_cached_, unfused
from secateur.models.types import Cost


def counted(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Parameters of `model` and MACs of its forward pass over one image (C, H, W).

    MACs are those of matrix products and convolutions, half of what torch's flop counter
    counts; QK^T and AV are among them. The model is left as it was.
    """
    image_BCHW = example_images(model, input_size, batch=1)
    counter = FlopCounterMode(display=False)
    # WHY: the counter watches modules by their gradients, and fails at views of parameters.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with evaluating(model), torch.no_grad(), _plain_attention(), unfused(model), counter:
        functional_call(model, weights, (image_BCHW,))
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
    )


def counted_anywhere(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """The same from shapes alone, which takes neither time nor memory.

    Models that need numbers to decide what they do next are run in earnest.
    """
    on_meta = {name: t.detach().to("meta") for name, t in _tensors(model)}
    image_BCHW = example_images(model, input_size, batch=1).to("meta")
    counter = FlopCounterMode(display=False)
    forget_cached_(model)
    try:
        with evaluating(model), torch.no_grad(), _plain_attention(), unfused(model), counter:
            functional_call(model, on_meta, (image_BCHW,))
    except (RuntimeError, NotImplementedError):
        return counted(model, input_size)
    finally:
        forget_cached_(model)
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.get_total_flops() // 2,
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as matrix products: the counter has no formula for some fused CPU kernels.

    The zeros with which our own attention pads unequal widths for a fused kernel are left out, too:
    they are a matter of speed, not of what the model computes.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
