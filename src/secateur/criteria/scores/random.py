"""Random worth: the control that every other criterion must beat."""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.weights import AttentionWeights, MlpWeights


@criterion(
    "random",
    title="Random",
    source="control",
    needs={group: () for group in ("hidden", "qk", "vo", "heads", "branch", "block", "width")},
)
def random(question: Question) -> Tensor:
    """Uniform numbers in [0, 1) from the question's seed."""
    generator = torch.Generator().manual_seed(question.seed)
    size: tuple[int, ...] = ()
    if question.stream is not None:
        size = (next(iter(question.stream.writers.values())).shape[0],)
    elif isinstance(question.weights, MlpWeights) and question.group == "hidden":
        size = (question.weights.shape.hidden,)
    elif isinstance(question.weights, AttentionWeights) and question.group != "branch":
        shape = question.weights.shape
        size = (shape.heads,)
        if question.group != "heads":
            size = (shape.heads, shape.size(question.group))
    return torch.rand(size, generator=generator, dtype=torch.float64)
