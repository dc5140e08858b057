"""Minitron's activation scores: mean over tokens, then root mean square over images."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion


@criterion(
    "minitron",
    title="Activation averaged over tokens (Minitron)",
    source="Minitron, arXiv 2407.14679",
    needs={"hidden": ("hidden_means",), "heads": ("head_means",)},
)
def minitron(question: Question) -> Tensor:
    """sqrt of the mean over images of (mean over tokens of |a|)^2; of a head, of its norm."""
    kind = "hidden_means" if question.group == "hidden" else "head_means"
    sums = question.sums[kind]
    return (sums["square"] / sums["images"]).sqrt()
