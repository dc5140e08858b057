"""What a kept branch would have to add on top of its own update so that the next could go.

Legend: B batch, N tokens, D residual width.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secateur.data.batches import Batches
from secateur.models.hook_points import Edit, HookPoint, attached
from secateur.models.host import host_of
from secateur.statistics.kinds.updates import add_joint_moments_
from secateur.statistics.observe import frozen
from secateur.statistics.registry import Sums

Run = tuple[str, tuple[str, ...]]
"""A kept branch, and the branches right behind it that are to be dropped."""


def anchor_moments(
    model: nn.Module, batches: Batches, runs: Mapping[str, tuple[str, ...]]
) -> dict[str, Sums]:
    """Joint moments of each anchor's update (x) with the sum of the updates of its run (y).

    `runs` maps a kept branch to the branches right behind it that will be dropped. One pass over
    the uncut model; see `secateur.statistics.kinds.updates` for the sums.
    """
    found = run_moments(model, batches, list(runs.items()))
    return {anchor: sums for (anchor, _), sums in found.items()}


def run_moments(model: nn.Module, batches: Batches, runs: Sequence[Run]) -> dict[Run, Sums]:
    """The same for any number of runs behind each anchor, in one pass."""
    host = host_of(model)
    sums: dict[Run, Sums] = {run: {} for run in runs}
    edits: list[tuple[HookPoint, Edit]] = []
    for run in runs:
        seen: dict[str, Tensor] = {}
        names = (run[0], *run[1])
        for name in names:
            hook_point = host.hook_points(host.anatomy.branch(name))["update"]
            edits.append((hook_point, partial(_see, seen, names, name, sums[run])))
    with frozen(model), torch.no_grad(), attached(model, edits):
        for batch in batches if runs else ():
            model(batch.images_BCHW)
    return sums


def _see(
    seen: dict[str, Tensor], names: tuple[str, ...], name: str, sums: Sums, update_BND: Tensor
) -> None:
    """Keep an update until the last of the run has passed, then add all up."""
    seen[name] = update_BND.detach().float()
    if name == names[-1]:
        anchor_BND = seen.pop(names[0])
        add_joint_moments_(sums, anchor_BND, torch.stack(list(seen.values())).sum(0))
        seen.clear()
