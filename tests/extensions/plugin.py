"""A criterion in a distribution of its own, found by its entry point."""

from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.criteria.scores.random import random


@criterion("upside_down", title="Upside down", source="a test", needs={"hidden": ()})
def upside_down(question: Question) -> Tensor:
    """The opposite of chance."""
    return -random(question)
