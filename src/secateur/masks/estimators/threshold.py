"""Scores say which units stay, a learned threshold says how many."""

import torch
from torch import Tensor

from secateur.masks.estimator import LARGEST, Scores, estimators, straight_through


class Threshold:
    """z = 1[s > θ], one θ per gate. The task moves s and θ, the cost moves θ alone."""

    title = "Learned threshold"
    source = "Width & Depth Pruning, AAAI 2022, with a threshold on scores instead of a rank"
    hard = True

    def start(self, worth_RU: Tensor) -> dict[str, Tensor]:
        """Scores in [0.5, 1.5], the threshold at 0."""
        return {"score": 1 + 0.5 * worth_RU, "threshold": torch.zeros(1, 1)}

    def margin(self, scores: Scores) -> Tensor:
        """Score minus threshold."""
        return scores["score"] - scores["threshold"]

    def gate(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The hard mask; dL/ds = dL/dz, dL/dθ = -mean of dL/dz."""
        mean = scores["threshold"] / live_RU.numel()
        return straight_through(live_RU, scores["score"] - mean)

    def price(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The hard mask; its gradient goes to the threshold."""
        return straight_through(live_RU, (-scores["threshold"]).expand_as(live_RU))

    @torch.no_grad()
    def clamp_(self, scores: Scores) -> None:
        """Both to [-2, 2]."""
        scores["score"].clamp_(-LARGEST, LARGEST)
        scores["threshold"].clamp_(-LARGEST, LARGEST)


estimators.register("threshold")(Threshold())
