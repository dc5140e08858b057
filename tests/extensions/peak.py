"""A criterion in one file, on statistics of its own."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion("peak", title="Peak", source="a test", needs={"hidden": ("peaks",)})
def peak(question: Question) -> Tensor:
    """Mean over images of the largest activation."""
    return question.sums["peaks"]["peak"] / question.images
