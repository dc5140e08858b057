"""What a run of dropped branches reads at its beginning and adds to the stream in all.

Legend: B batch, N tokens, D residual width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from secateur.data.batches import Batches
from secateur.data.split import HOLD_EVERY
from secateur.models.hook_points import Edit, HookPoint, attached
from secateur.models.host import host_of
from secateur.statistics.kinds.updates import add_joint_moments_
from secateur.statistics.observe import frozen
from secateur.statistics.registry import Sums

HELD = "held."
"""Before the names of sums over images that are held out."""


@dataclass(slots=True)
class _Gap:
    """A run while images pass: what was seen of the present batch, sums so far, images so far."""

    run: tuple[str, ...]
    seen: dict[str, Tensor] = field(default_factory=dict)
    fit: Sums = field(default_factory=dict)
    held: Sums = field(default_factory=dict)
    images: int = 0


def gap_moments(
    model: nn.Module, batches: Batches, gaps: Mapping[str, tuple[str, ...]]
) -> dict[str, Sums]:
    """Joint moments of what the first branch of each gap reads (x) and the updates of all (y).

    x is behind the norm of that branch. One pass over the uncut model; the sums are those of
    `secateur.statistics.kinds.updates`. Every fifth image is left out of them and summed apart,
    under the same names behind `HELD`.
    """
    host = host_of(model)
    found = {first: _Gap(run) for first, run in gaps.items()}
    edits: list[tuple[HookPoint, Edit]] = []
    for first, gap in found.items():
        reads = host.hook_points(host.anatomy.branch(first))["input"]
        edits.append((reads, partial(_enter, gap)))
        for name in gap.run:
            hook_point = host.hook_points(host.anatomy.branch(name))["update"]
            edits.append((hook_point, partial(_update, gap, name)))
    with frozen(model), torch.no_grad(), attached(model, edits):
        for batch in batches if gaps else ():
            model(batch.images_BCHW)
    return {
        first: gap.fit | {f"{HELD}{name}": value for name, value in gap.held.items()}
        for first, gap in found.items()
    }


def _enter(gap: _Gap, input_BND: Tensor) -> None:
    gap.seen = {"": input_BND.detach().float()}


def _update(gap: _Gap, name: str, update_BND: Tensor) -> None:
    """Keep an update until the last of the run has passed, then add all up."""
    gap.seen[name] = update_BND.detach().float()
    if name != gap.run[-1]:
        return
    x_BND = gap.seen.pop("")
    y_BND = torch.stack(list(gap.seen.values())).sum(0)
    number_B = torch.arange(gap.images, gap.images + len(x_BND), device=x_BND.device)
    held_B = number_B % HOLD_EVERY == HOLD_EVERY - 1
    gap.images += len(x_BND)
    for sums, chosen_B in ((gap.fit, ~held_B), (gap.held, held_B)):
        if bool(chosen_B.any()):
            add_joint_moments_(sums, x_BND[chosen_B], y_BND[chosen_B])
