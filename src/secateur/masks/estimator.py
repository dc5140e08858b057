"""How a gate estimator is registered: from scores to a mask, and from gradients to scores.

Letters: R rows, U units per row.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from secateur.registry import Registry

Scores = Mapping[str, Tensor]
"""The learned tensors of one gate, by name."""


class GateEstimator(Protocol):
    """What a form must tell. `live_RU` is always the hard mask (0 or 1) of the moment.

    `source` says where the formula comes from.
    """

    title: str
    source: str
    hard: bool
    """Whether units are multiplied by the hard mask in training."""

    def start(self, worth_RU: Tensor) -> dict[str, Tensor]:
        """Learned tensors at the start; `worth_RU` lies evenly in [-1, 1], higher is better.

        Every unit begins on the kept side.
        """
        ...

    def margin(self, scores: Scores) -> Tensor:
        """How far each unit is from the decision (R, U); above zero is kept."""
        ...

    def gate(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """What units are multiplied by in training (R, U), with a gradient to the scores."""
        ...

    def price(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """What the cost sees of each unit (R, U), with a gradient to the scores."""
        ...

    def clamp_(self, scores: Scores) -> None:
        """Keep learned tensors in a range from which a closed gate can open again soon."""
        ...


estimators: Registry[GateEstimator] = Registry("form of gate", "secateur.masks.estimators")

LARGEST = 2.0
"""Scores of the deterministic forms lie in [-2, 2] around the decision."""


def straight_through(live_RU: Tensor, score_RU: Tensor) -> Tensor:
    """The hard mask in the forward pass, the identity of the score in the backward pass.

    Bengio et al., arXiv 1308.3432.
    """
    return live_RU + (score_RU - score_RU.detach())
