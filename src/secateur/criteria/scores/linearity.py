"""What an affine map cannot replace: the part of an update that no linear layer would give.

Legend: D residual width.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.statistics import Sums

RIDGE = 1e-6
"""Relative to the mean of the diagonal of the input's covariance."""


def centred(sums: Sums, gram: str, left: str, right: str) -> Tensor:
    """Covariance (D, D), fp64, from a Gram and the two sums."""
    count = sums["count"]
    cov_DD: Tensor = sums[gram].double() / count
    return cov_DD - torch.outer(sums[left] / count, sums[right] / count)


@criterion(
    "nonlinearity",
    title="Nonlinearity of the update",
    source="in the manner of NBL, NeurIPS 2025, arXiv 2505.21077",
    needs={"branch": ("linear_moments",)},
)
def nonlinearity(question: Question) -> Tensor:
    """1 - R^2 of the best affine map from what the layer reads to its update, tokens pooled.

    The linear minimum mean squared error map is cov_yx cov_xx^-1; R^2 is the share of the
    update's variance (summed over dims) that it explains. NBL bounds the same error by canonical
    correlations; with the map at hand the error itself is as cheap.
    """
    sums = question.sums["linear_moments"]
    cov_xx = centred(sums, "x_gram", "x_sum", "x_sum")
    cov_xy = centred(sums, "xy_gram", "x_sum", "y_sum")
    variance = centred(sums, "y_gram", "y_sum", "y_sum").diagonal().sum()
    if float(variance) <= 0:
        return torch.zeros((), device=cov_xx.device)
    level = RIDGE * float(cov_xx.diagonal().mean()) + torch.finfo(torch.float64).tiny
    eye = torch.eye(cov_xx.shape[0], dtype=torch.float64, device=cov_xx.device)
    explained = (cov_xy * torch.linalg.solve(cov_xx + level * eye, cov_xy)).sum()
    unexplained: Tensor = (1 - explained / variance).clamp(min=0)
    return unexplained
