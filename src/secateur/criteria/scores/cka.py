"""Centred kernel alignment of the stream before and after a branch or block."""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.types import GroupName
from secateur.statistics.moments import joint_moments, moments

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
    seen = joint_moments(sums)
    below = torch.linalg.norm(seen.cov_UU) * torch.linalg.norm(moments(sums, "y_").cov_UU)
    if float(below) <= 0:
        return torch.zeros((), device=below.device)
    worth: Tensor = (1 - seen.cross_UD.square().sum() / below).clamp(min=0)
    return worth
