"""What an affine map cannot replace: the part of an update that no linear layer would give.

Legend: D residual width.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.statistics.moments import joint_moments, moments

RIDGE = 1e-6
"""Relative to the mean of the diagonal of the input's covariance."""


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
    seen = joint_moments(sums)
    cov_xx, cov_xy = seen.cov_UU, seen.cross_UD
    variance = moments(sums, "y_").cov_UU.diagonal().sum()
    if float(variance) <= 0:
        return torch.zeros((), device=cov_xx.device)
    level = RIDGE * float(cov_xx.diagonal().mean()) + torch.finfo(torch.float64).tiny
    eye = torch.eye(cov_xx.shape[0], dtype=torch.float64, device=cov_xx.device)
    explained = (cov_xy * torch.linalg.solve(cov_xx + level * eye, cov_xy)).sum()
    unexplained: Tensor = (1 - explained / variance).clamp(min=0)
    return unexplained
