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
from secateur.statistics.divergence import LossName, output_losses
from secateur.statistics.registry import Sums, add_, statistics_trial


@statistics_trial("branch_removal")
def branch_removal(
    sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch, loss: LossName
) -> None:
    """Sums over images, by branch, of all `output_losses`.

    With squared errors also of the dense outputs (`output`, (C,)) and their squares.
    """
    runner = Runner.of(model)
    _add_losses_(sums_of, runner, batch, {name: (name,) for name in runner.names}, loss)


@statistics_trial("block_removal")
def block_removal(
    sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch, loss: LossName
) -> None:
    """The same by block."""
    runner = Runner.of(model)
    blocks = [block for block in runner.anatomy.blocks if block.branches]
    _add_losses_(sums_of, runner, batch, {block.id: block.branches for block in blocks}, loss)


def _add_losses_(
    sums_of: Callable[[str], Sums],
    runner: Runner,
    batch: Batch,
    left_out: Mapping[str, tuple[str, ...]],
    loss: LossName,
) -> None:
    """Add the losses without the branches of every owner."""
    outputs = runner.without_each(batch.images_BCHW, (), left_out.values())
    dense_BC = next(outputs).double()
    for owner, changed_BC in zip(left_out, outputs, strict=True):
        sums = sums_of(owner)
        add_(sums, "images", torch.tensor(float(len(dense_BC)), dtype=torch.float64))
        if loss == "mse":
            add_(sums, "output", dense_BC.sum(0))
            add_(sums, "output_square", dense_BC.square().sum(0))
        for name, measure in output_losses(loss).items():
            add_(sums, name, measure(dense_BC, changed_BC.double(), batch.labels_B))
