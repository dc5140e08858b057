"""A mask on the channels of the residual stream: norms go over the channels that are live.

A norm over a stream with zeros in it has other statistics than one over fewer channels, so masking
alone would not be what removal does. Here every norm outside the branches takes its statistics
from the live channels and gives zero in the others, and where something reads the stream without
a norm before it, it reads zeros. What writers put into masked channels is never read. Of several
streams each has the norms and readers of its stage, the last one also those behind all blocks.
Legend: D residual width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from secateur.models.family import family_of
from secateur.models.norms import centres, eps_of
from secateur.models.types import Stream

GetMask = Callable[[], Tensor]


def stream_hooks(
    model: nn.Module, stream: Stream, mask_D: GetMask
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks through which a mask acts on all norms and readers of a stream."""
    found = family_of(model).stream_readers(model, stream)
    for path in found.norms:
        yield model.get_submodule(path).register_forward_hook(_normalise(mask_D))
    for path in found.readers:
        yield model.get_submodule(path).register_forward_pre_hook(_read(mask_D))


def _read(mask_D: GetMask) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        live_D = mask_D().to(args[0])
        on_grid = args[0].ndim == 4
        return (args[0] * (live_D[:, None, None] if on_grid else live_D), *args[1:])

    return read


def _normalise(mask_D: GetMask) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def normalise(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return masked_norm(module, args[0], mask_D()).to(output.dtype)

    return normalise


def masked_norm(norm: nn.Module, x: Tensor, mask_D: Tensor) -> Tensor:
    """What the norm would give over the live channels alone, zero in the others.

    Works for soft masks too, which weigh the channels in the statistics.
    """
    wide = x.float() if x.dtype.itemsize < 4 else x
    mask_D = mask_D.to(wide)
    missing = float(getattr(norm, "missing", 0))
    whole = mask_D.sum() + missing
    held_sum = getattr(norm, "held_sum", torch.zeros((), dtype=wide.dtype, device=wide.device))
    apart = getattr(norm, "held_square", held_sum)
    if centres(norm):
        mean = ((wide * mask_D).sum(-1, keepdim=True) + held_sum) / whole
        wide = wide - mean
        apart = apart - 2 * mean * held_sum + missing * mean.square()
    power = ((wide.square() * mask_D).sum(-1, keepdim=True) + apart) / whole
    normal = wide * (power + eps_of(norm)).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(weight, Tensor):
        normal = normal * weight
    return (normal + bias if isinstance(bias, Tensor) else normal) * mask_D
