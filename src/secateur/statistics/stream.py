"""The residual stream at all boundaries of blocks of one batch, at few tokens.

Point 0 is the stream before the first block, point i that after block i - 1. Only the class token
and some patches are kept until the last block has run, so that a batch of a large model needs
megabytes (points × images × (1 + PATCHES) × width floats), not gigabytes.
Legend: B batch, N tokens, T kept patches, D residual width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.models.family import family_of
from secateur.models.hook_points import Edit, HookPoint, attach
from secateur.models.types import Anatomy
from secateur.statistics.registry import StatisticsKind, Sums

PATCHES = 16
"""Patches of an image that stand for all, evenly spread over it."""


def watch_stream(
    model: nn.Module,
    anatomy: Anatomy,
    kind: StatisticsKind,
    sums: Sums,
    listening: Callable[[], bool] = lambda: True,
) -> Iterator[RemovableHandle]:
    """Hooks that hand a kind the stream of a batch once its last block has run.

    While `listening()` is false, nothing is seen.
    """
    seen: dict[str, Tensor] = {}
    view = family_of(model).tokens
    last = len(anatomy.blocks)

    def keep(point: int, x: Tensor) -> None:
        if not listening():
            return
        for name, part in thinned(x.detach(), anatomy.prefix_tokens).items():
            seen[f"{point}.{name}"] = part
        if point == last:
            kind.update(sums, {"points": torch.tensor(last + 1), **seen})
            seen.clear()

    def at(point: int) -> Edit:
        return lambda x: keep(point, x)

    yield attach(model, HookPoint(anatomy.blocks[0].id, "input", view), at(0))
    for number, block in enumerate(anatomy.blocks):
        yield attach(model, HookPoint(block.id, "output", view), at(number + 1))


def thinned(x_BND: Tensor, prefix_tokens: int) -> dict[str, Tensor]:
    """The class token (B, 1, D), if there is one, and evenly spread patches (B, T, D), fp32 copies.

    Prefix tokens after the first are registers or a distillation token and left out.
    """
    patches = x_BND.shape[1] - prefix_tokens
    count = min(PATCHES, patches)
    chosen_T = torch.arange(count, device=x_BND.device) * patches // max(count, 1)
    chosen_T = chosen_T + (patches // max(count, 1)) // 2 + prefix_tokens
    parts = {"patches": x_BND[:, chosen_T].float()}
    if prefix_tokens > 0:
        parts["class"] = x_BND[:, :1].float().clone()
    return parts
