"""How far a linear layer could be from a branch, bounded by canonical correlations.

Legend: D residual width.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.criteria.scores.cka import NEEDS
from secateur.statistics.moments import joint_moments, moments

FLOOR = 1e-9
"""Variances below this share of the largest are no directions: a stream need not fill its space."""


@criterion(
    "cca",
    title="1 - squared canonical correlations of input and output, summed",
    source="NBL, NeurIPS 2025, arXiv 2505.21077",
    needs=NEEDS,
)
def cca(question: Question) -> Tensor:
    """sum_i (1 - rho_i^2) over the canonical correlations of the stream before and after.

    The bound of NBL on the error, relative in every direction of the output, of the best linear
    map. Directions in which the stream has no variance count nothing.
    """
    sums = question.sums[NEEDS[question.group][0]]
    seen = joint_moments(sums)
    left_XD = _whitening(seen.cov_UU)
    right_DY = _whitening(moments(sums, "y_").cov_UU).T
    cross_XY = left_XD @ seen.cross_UD @ right_DY
    rho = torch.linalg.svdvals(cross_XY).clamp(max=1)
    bound: Tensor = right_DY.shape[1] - rho.square().sum()
    return bound.clamp(min=0)


def _whitening(cov_DD: Tensor) -> Tensor:
    """Rows that map onto uncorrelated directions of variance 1 (X, D)."""
    values, vectors = torch.linalg.eigh(cov_DD)
    real = values > FLOOR * values[-1].clamp(min=torch.finfo(torch.float64).tiny)
    whitening_XD: Tensor = (vectors[:, real] / values[real].sqrt()).T
    return whitening_XD
