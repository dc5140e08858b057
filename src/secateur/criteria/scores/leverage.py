"""Ridge leverage: how badly a neuron can be told from all the others."""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion

RIDGE = 1e-2
"""Relative to the mean of the diagonal."""


@criterion(
    "leverage",
    title="Ridge leverage score",
    source="MoDeGPT, ICLR 2025, arXiv 2408.09632, module of type I",
    needs={"hidden": ("hidden_moments",)},
)
def leverage(question: Question) -> Tensor:
    """[C (C + r I)^-1]_jj with C the second moment of the neurons after the activation: (F,)."""
    sums = question.sums["hidden_moments"]
    gram_FF = sums["gram"].double() / sums["count"]
    level = RIDGE * float(gram_FF.diagonal().mean()) + torch.finfo(torch.float64).tiny
    eye_FF = torch.eye(gram_FF.shape[0], dtype=torch.float64, device=gram_FF.device)
    solved_FF: Tensor = torch.linalg.solve(gram_FF + level * eye_FF, gram_FF)
    return solved_FF.diagonal().clamp(min=0)
