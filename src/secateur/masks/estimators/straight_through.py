"""Hard masks with straight-through gradients."""

import torch
from torch import Tensor

from secateur.masks.estimator import LARGEST, Scores, estimators, straight_through


class StraightThrough:
    """z = 1[s > 0]; dL/ds = dL/dz. Trained and exported network are the same at every step."""

    title = "Hard mask, straight-through gradient"
    source = "Bengio et al., arXiv 1308.3432; structured movement pruning, arXiv 2109.04838"
    hard = True

    def start(self, worth_RU: Tensor) -> dict[str, Tensor]:
        """Scores in [0.5, 1.5]."""
        return {"score": 1 + 0.5 * worth_RU}

    def margin(self, scores: Scores) -> Tensor:
        """The score itself."""
        return scores["score"]

    def gate(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The hard mask."""
        return straight_through(live_RU, scores["score"])

    def price(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The hard mask."""
        return straight_through(live_RU, scores["score"])

    @torch.no_grad()
    def clamp_(self, scores: Scores) -> None:
        """To [-2, 2]."""
        scores["score"].clamp_(-LARGEST, LARGEST)


estimators.register("straight_through")(StraightThrough())
