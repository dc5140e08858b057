"""What the model's output loses when one layer or block is left out: the honest oracle.

Each trial leaves one branch (or block) out and runs the rest of the model on from there. The
branch's mean update over the calibration images is not put in its place, since it is not known
before the images were seen: these are damages without any repair.
Legend: B batch, N tokens, D residual width, C classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.data.batches import Batch
from secateur.models.family import family_of
from secateur.models.types import Anatomy
from secateur.models.walk import Walk
from secateur.statistics.registry import Sums, add_, evidence_trial

Damage = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Called as damage(dense logits, changed logits, labels); sums over the images."""


def divergence(dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None) -> Tensor:
    """KL(dense || changed), in nats."""
    log_p_BC, log_q_BC = dense_BC.log_softmax(-1), changed_BC.log_softmax(-1)
    return F.kl_div(log_q_BC, log_p_BC, log_target=True, reduction="sum")


def entropy_rise(dense_BC: Tensor, changed_BC: Tensor, labels_B: Tensor | None) -> Tensor:
    """Rise of the cross-entropy, in nats; the dense predictions stand for missing labels."""
    target_B = dense_BC.argmax(-1) if labels_B is None else labels_B
    after = F.cross_entropy(changed_BC, target_B, reduction="sum")
    return after - F.cross_entropy(dense_BC, target_B, reduction="sum")


def logit_angle(dense_BC: Tensor, changed_BC: Tensor, _labels_B: Tensor | None) -> Tensor:
    """Angle between the logits, as a share of pi."""
    cosine_B = F.cosine_similarity(dense_BC, changed_BC, dim=-1).clamp(-1, 1)
    return (cosine_B.arccos() / torch.pi).sum()


DAMAGES: dict[str, Damage] = {
    "delta_kl": divergence,
    "delta_ce": entropy_rise,
    "delta_angle": logit_angle,
}
"""By the name of the criterion that reads it."""


@evidence_trial("branch_removal")
def branch_removal(sums_of: Callable[[str], Sums], model: nn.Module, batch: Batch) -> None:
    """Sums over images, by branch, of all `DAMAGES`."""
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
    walk = Walk.of(model, family_of(model), anatomy)
    embedded_BND = walk.embed(batch.images_BCHW)
    streams = [embedded_BND, *walk.streams(embedded_BND)]
    dense_BC = walk.finish(streams[-1], len(walk)).double()
    for owner, start, stop in spans:
        changed_BC = walk.finish(streams[start], start, walk.names[start:stop]).double()
        sums = sums_of(owner)
        add_(sums, "images", torch.tensor(float(len(dense_BC)), dtype=torch.float64))
        for name, damage in DAMAGES.items():
            add_(sums, name, damage(dense_BC, changed_BC, batch.labels_B))
