"""Cosine similarity of the stream before and after a branch or block (Block Influence)."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion(
    "cosine",
    title="Cosine similarity of input and output",
    source="ShortGPT, arXiv 2403.03853; LLM-Drop, arXiv 2406.15786",
    needs={"branch": ("branch_similarity",), "block": ("block_similarity",)},
)
def cosine(question: Question) -> Tensor:
    """1 - E[cos(x, x + update)] over all tokens: 0 for a branch that changes nothing."""
    sums = question.sums[f"{question.group}_similarity"]
    return 1.0 - sums["cosine"] / sums["count"]
