"""How much a layer may say: the entropy of its update, taken for a Gaussian.

Legend: D residual width.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion

LEAST = 1e-12
"""Variances below this share of their mean count as it, so that one dead channel is not all."""


@criterion(
    "entropy",
    title="Entropy of the update",
    source="in the manner of Lin et al., CVPR 2024 (λ-ViT)",
    needs={"branch": ("linear_moments",)},
)
def entropy(question: Question) -> Tensor:
    """exp(mean_d log sigma_d), sigma_d the standard deviation of channel d of the update.

    The differential entropy of independent Gaussians is sum_d log(sigma_d) and a constant, so this
    orders layers by it; the power keeps the score positive. Lin et al. choose by the transfer of
    such entropy to the last layer, whose estimate is not in public code; here it is the layer's
    own.
    """
    sums = question.sums["linear_moments"]
    mean_D = sums["y_sum"] / sums["count"]
    variance_D = sums["y_gram"].diagonal().double() / sums["count"] - mean_D.square()
    level = float(variance_D.mean())
    if level <= 0:
        return torch.zeros((), dtype=torch.float64, device=variance_D.device)
    power: Tensor = (0.5 * variance_D.clamp(min=LEAST * level).log().mean()).exp()
    return power
