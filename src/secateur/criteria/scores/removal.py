"""The oracle for one layer: leave it out and look at what the model then says."""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.types import GroupName
from secateur.statistics.divergence import TINY
from secateur.statistics.registry import Sums

NEEDS: dict[GroupName, tuple[str, ...]] = {
    "branch": ("branch_removal",),
    "block": ("block_removal",),
}


@criterion(
    "delta_kl",
    title="Divergence of the output without it",
    source="single removal, as a score: arXiv 2605.14075; KL as in EvoPress, arXiv 2410.14649",
    needs=NEEDS,
)
def delta_kl(question: Question) -> Tensor:
    """Mean over images of KL(dense || without), in nats; needs no labels.

    Of other losses of the outputs (see `secateur.statistics.divergence`) the mean of these; squared
    errors as a share of the variance of the dense outputs.
    """
    sums = question.sums[NEEDS[question.group][0]]
    mean = sums["delta_kl"] / sums["images"]
    return mean / _spread(sums) if "output" in sums else mean


def _spread(sums: Sums) -> Tensor:
    """As `secateur.statistics.divergence.spread`, from sums."""
    mean, square = sums["output"] / sums["images"], sums["output_square"] / sums["images"]
    tokens = mean.numel() / mean.shape[-1]
    variance, whole = (square - mean.square()).sum() / tokens, square.sum() / tokens
    found = torch.where(variance > TINY * whole, variance, whole)
    return torch.where(found > 0, found, torch.ones_like(found))


@criterion(
    "delta_ce",
    title="Rise of the cross-entropy without it",
    source="Shortened LLaMA, arXiv 2402.02834; SLEB, arXiv 2402.09025, in one shot",
    needs=NEEDS,
)
def delta_ce(question: Question) -> Tensor:
    """Mean over images of the rise of the cross-entropy, in nats.

    It may be negative: some layers do harm. The labels are those of the images, or the dense
    model's predictions where they have none.
    """
    sums = question.sums[NEEDS[question.group][0]]
    return sums["delta_ce"] / sums["images"]


@criterion(
    "delta_angle",
    title="Turn of the output without it",
    source="FinerCut, arXiv 2405.18218, in one shot",
    needs=NEEDS,
)
def delta_angle(question: Question) -> Tensor:
    """Mean over images of the angle between the logits, as a share of pi; needs no labels."""
    sums = question.sums[NEEDS[question.group][0]]
    return sums["delta_angle"] / sums["images"]
