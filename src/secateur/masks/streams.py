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
from timm.layers import RmsNorm
from torch import Tensor, nn

from secateur.models.family import family_of
from secateur.models.norms import HeldNorm
from secateur.models.stream import narrowable
from secateur.models.types import Anatomy, Stream

NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm, HeldNorm)
GetMask = Callable[[], Tensor]


def stream_hooks(
    model: nn.Module, anatomy: Anatomy, stream: Stream, mask_D: GetMask
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks through which a mask acts on all norms and readers of a stream."""
    stages = {branch.block: branch.stage for branch in anatomy.branches}
    own = tuple(f"{b.id}." for b in anatomy.blocks if stages.get(b.index) == stream.stage)
    others = tuple(
        f"{b.id}." for b in anatomy.blocks if stages.get(b.index, stream.stage) != stream.stage
    )
    inside = tuple(f"{branch.id}." for branch in anatomy.branches)
    branches = {branch.id for branch in anatomy.branches if branch.stage == stream.stage}
    last = stream.id == anatomy.streams[-1].id
    # WHY: what reads a stream between two stages, such as a strided convolution, has no norm first.
    ends = None if last else narrowable(family_of(model)).stream_ends(model, stream)
    between = set() if ends is None else set(ends.readers)
    for path, module in model.named_modules():
        if path.startswith(inside + others):
            continue
        if isinstance(module, NORMS) and (last or path.startswith(own)):
            if module.weight is None or module.weight.numel() == stream.width:
                yield module.register_forward_hook(_normalise(mask_D))
        elif (
            path in branches
            or path in between
            or (last and isinstance(module, nn.Linear) and module.in_features == stream.width)
        ):
            yield module.register_forward_pre_hook(_read(mask_D))


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
    centred = norm.centre if isinstance(norm, HeldNorm) else isinstance(norm, nn.LayerNorm)
    held_sum = getattr(norm, "held_sum", torch.zeros((), dtype=wide.dtype, device=wide.device))
    apart = getattr(norm, "held_square", held_sum)
    if centred:
        mean = ((wide * mask_D).sum(-1, keepdim=True) + held_sum) / whole
        wide = wide - mean
        apart = apart - 2 * mean * held_sum + missing * mean.square()
    power = ((wide.square() * mask_D).sum(-1, keepdim=True) + apart) / whole
    eps = getattr(norm, "eps", None)
    normal = wide * (power + (torch.finfo(wide.dtype).eps if eps is None else eps)).rsqrt()
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(weight, Tensor):
        normal = normal * weight
    return (normal + bias if isinstance(bias, Tensor) else normal) * mask_D
