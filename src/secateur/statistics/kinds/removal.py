"""Degradation of the model's output when one layer or block is left out: the honest oracle.

Each trial leaves one branch (or block) out and runs the rest of the model on from there. The
branch's mean update over the calibration images is not put in its place, since it is not known
before the images were seen: these are degradations without any repair.
Legend: B batch, C classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from secateur.data.batches import Batch
from secateur.models.runner import Runner
from secateur.statistics.divergence import OUTPUT_LOSSES
from secateur.statistics.registry import Sums, add_, statistics_trial


@statistics_trial("branch_removal")
def branch_removal(sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch) -> None:
    """Sums over images, by branch, of all `OUTPUT_LOSSES`."""
    runner = Runner.of(model)
    _add_losses_(sums_of, runner, batch, {name: (name,) for name in runner.names})


@statistics_trial("block_removal")
def block_removal(sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch) -> None:
    """The same by block."""
    runner = Runner.of(model)
    blocks = [block for block in runner.anatomy.blocks if block.branches]
    _add_losses_(sums_of, runner, batch, {block.id: block.branches for block in blocks})


def _add_losses_(
    sums_of: Callable[[str], Sums],
    runner: Runner,
    batch: Batch,
    left_out: Mapping[str, tuple[str, ...]],
) -> None:
    """Add the losses without the branches of every owner."""
    outputs = runner.without_each(batch.images_BCHW, (), left_out.values())
    dense_BC = next(outputs).double()
    for owner, changed_BC in zip(left_out, outputs, strict=True):
        sums = sums_of(owner)
        add_(sums, "images", torch.tensor(float(len(dense_BC)), dtype=torch.float64))
        for name, loss in OUTPUT_LOSSES.items():
            add_(sums, name, loss(dense_BC, changed_BC.double(), batch.labels_B))
