"""How far a branch or block moves the stream: by angle, and by the length of its update."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.types import GroupName

NEEDS: dict[GroupName, tuple[str, ...]] = {
    "branch": ("branch_similarity",),
    "block": ("block_similarity",),
}


@criterion(
    "angle",
    title="Angular distance of input and output",
    source="UIDL, arXiv 2403.17887, for windows of one block",
    needs=NEEDS,
)
def angle(question: Question) -> Tensor:
    """E[arccos(cos(x, x + update))] / pi over all tokens."""
    sums = question.sums[f"{question.group}_similarity"]
    return sums["angle"] / sums["count"]


@criterion(
    "relative_norm",
    title="Relative length of the update",
    source="mean of ||update|| / ||x||, residual branch ratio as in Raghu et al., NeurIPS 2021",
    needs=NEEDS,
)
def relative_norm(question: Question) -> Tensor:
    """E[||update|| / ||x||] over all tokens."""
    sums = question.sums[f"{question.group}_similarity"]
    return sums["ratio"] / sums["count"]
