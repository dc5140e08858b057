"""Optimal-brain elimination: what the writer loses with a unit, all others refitted.

Legend: D residual width, U units a writer reads, H heads, F hidden neurons.
"""

import torch
from torch import Tensor

from secateur.criteria.elimination import Elimination, eliminate, eliminate_heads
from secateur.criteria.registry import Question, criterion
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.statistics.moments import moments

RIDGE = 1e-3
"""Relative to the mean of the diagonal of the covariance."""


@criterion(
    "obs",
    title="Optimal-brain elimination",
    source="ZipLM, arXiv 2302.04089; OSSCAR, arXiv 2403.12983; SlimGPT, NeurIPS 2024",
    needs={"hidden": ("hidden_moments",), "heads": ("context_moments",)},
)
def obs(question: Question) -> Tensor:
    """The squared error of the output that each unit adds when its turn comes: (F,) or (H,).

    Units go one after the other, the cheapest first, and the rest make up for each. Later units
    are worth no less than earlier ones, so that the order is that of the elimination.
    """
    if isinstance(question.weights, MlpWeights):
        cov_UU = moments(question.sums["hidden_moments"]).cov_UU
        return worth(eliminate(cov_UU, question.weights.w2_DF, RIDGE))
    assert isinstance(question.weights, AttentionWeights)
    cov_UU = moments(question.sums["context_moments"]).cov_UU
    heads = question.weights.shape.heads
    return worth(eliminate_heads(cov_UU, question.weights.o_DHV.flatten(1), heads, RIDGE))


def worth(elimination: Elimination) -> Tensor:
    """Growth of the error at each unit's elimination, never falling along the order."""
    # WHY: errors[s] is the error at size s; the first unit goes from size U to U - 1.
    growth = elimination.errors.flip(0).diff()
    rising = growth.cummax(0).values
    found = torch.empty_like(rising)
    found[elimination.order] = rising
    return found
