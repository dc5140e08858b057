"""What the model's output loses when one layer or block is left out: the honest oracle.

Each trial leaves one branch (or block) out and runs the rest of the model on from there. The
branch's mean update over the calibration images is not put in its place, since it is not known
before the images were seen: these are damages without any repair.
Legend: B batch, N tokens, D residual width, C classes.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.anatomy.family import family_of
from secateur.anatomy.types import Anatomy
from secateur.data.batches import Batch
from secateur.evidence.kinds import Sums, add_, evidence_trial


@evidence_trial("branch_removal")
def branch_removal(sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch) -> None:
    """Sums over images, by branch: `kl` KL(dense || without), `ce` change of the cross-entropy.

    Both in nats; where there are no labels, the dense model's predictions stand for them.
    """
    anatomy = family_of(model).read(model)
    spans = [(branch.id, number, number + 1) for number, branch in enumerate(anatomy.branches)]
    _add_damages_(sums_of, model, anatomy, batch, spans)


@evidence_trial("block_removal")
def block_removal(sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch) -> None:
    """The same by block."""
    anatomy = family_of(model).read(model)
    order = [branch.id for branch in anatomy.branches]
    spans = [
        (block.id, order.index(block.branches[0]), order.index(block.branches[-1]) + 1)
        for block in anatomy.blocks
        if block.branches
    ]
    _add_damages_(sums_of, model, anatomy, batch, spans)


def _add_damages_(
    sums_of: Callable[[str], Sums],
    model: nn.Module,
    anatomy: Anatomy,
    batch: Batch,
    spans: list[tuple[str, int, int]],
) -> None:
    """Add the damage of leaving out branches `start` to `stop`, for every span."""
    family = family_of(model)
    steps = [family.through(model, branch) for branch in anatomy.branches]
    streams = list(_streams(family.embed(model, batch.images_BCHW), steps))

    def outputs(x_BND: Tensor) -> Tensor:
        return family.head(model, x_BND).double().log_softmax(-1)

    dense_BC = outputs(streams[-1])
    target_B = dense_BC.argmax(-1) if batch.labels_B is None else batch.labels_B
    for owner, start, stop in spans:
        x_BND = streams[start]
        for step in steps[stop:]:
            x_BND = step(x_BND)
        changed_BC = outputs(x_BND)
        sums = sums_of(owner)
        add_(sums, "images", torch.tensor(float(len(dense_BC)), dtype=torch.float64))
        add_(sums, "kl", F.kl_div(changed_BC, dense_BC, log_target=True, reduction="sum"))
        lost = F.nll_loss(changed_BC, target_B, reduction="sum")
        add_(sums, "ce", lost - F.nll_loss(dense_BC, target_B, reduction="sum"))


def _streams(x_BND: Tensor, steps: list[nn.Module]) -> Iterator[Tensor]:
    """The stream before the first branch and after each."""
    yield x_BND
    for step in steps:
        x_BND = step(x_BND)
        yield x_BND
