"""Centred kernel alignment of the stream before and after a branch or block."""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.criteria.scores.linearity import centred
from secateur.models.types import GroupName

NEEDS: dict[GroupName, tuple[str, ...]] = {
    "branch": ("stream_moments",),
    "block": ("block_stream_moments",),
}


@criterion(
    "cka",
    title="1 - linear CKA of input and output",
    source="Kornblith et al., ICML 2019, arXiv 1905.00414",
    needs=NEEDS,
)
def cka(question: Question) -> Tensor:
    """1 - ||cov_xy||_F^2 / (||cov_xx||_F ||cov_yy||_F), every token of every image a sample.

    The samples are many times more than the dims, so the bias of the plain estimator is small.
    """
    sums = question.sums[NEEDS[question.group][0]]
    cov_xx = centred(sums, "x_gram", "x_sum", "x_sum")
    cov_yy = centred(sums, "y_gram", "y_sum", "y_sum")
    cov_xy = centred(sums, "xy_gram", "x_sum", "y_sum")
    below = torch.linalg.norm(cov_xx) * torch.linalg.norm(cov_yy)
    if float(below) <= 0:
        return torch.zeros((), device=cov_xx.device)
    worth: Tensor = (1 - cov_xy.square().sum() / below).clamp(min=0)
    return worth
