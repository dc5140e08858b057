"""Weighted input feature variance: what the output loses when units are held at their mean.

Legend: D residual width, H heads, V value dims, F hidden neurons, U units a writer reads.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.criteria.scores.energy import by_group, energy_of, mean_of, written
from secateur.models.weights import AttentionWeights, MlpWeights


@criterion(
    "wifv",
    title="Weighted input feature variance (FLAP)",
    source="FLAP, AAAI 2024, arXiv 2312.11983",
    needs={
        "hidden": ("hidden_energies",),
        "vo": ("context_energies",),
        "heads": ("context_energies",),
    },
)
def wifv(question: Question) -> Tensor:
    """Var(x_j) ||W_out[:, j]||^2 over all tokens, summed over the dims of a head for `heads`.

    For one unit this is the mean squared change of the output when the unit is replaced by its
    mean, which the repair `mean` does.
    """
    sums, weights = written(question), question.weights
    if isinstance(weights, MlpWeights):
        w_DU = weights.w2_DF
    else:
        assert isinstance(weights, AttentionWeights)
        w_DU = weights.o_DHV.flatten(1)
    variance_U = (energy_of(sums) - mean_of(sums).square()).clamp(min=0)
    return by_group(question, variance_U * w_DU.to(torch.float64).square().sum(0))
