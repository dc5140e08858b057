"""Stochastic gates with an expected number of open ones: L0 regularisation."""

import math

import torch
from torch import Tensor

from secateur.masks.estimator import Scores, estimators

LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
LARGEST = math.log(1e2)


class HardConcrete:
    """z = clamp(σ((log u - log(1-u) + s) / β) (ζ - γ) + γ, 0, 1), u uniform, one draw per batch.

    P(z ≠ 0) = σ(s - β log(-γ/ζ)) is what the cost sees; a unit is kept when its gate without
    noise is above one half, that is s > 0. In training gates are soft, so the network that is
    exported differs a little from the one that was trained.
    """

    title = "Hard-concrete (L0)"
    source = "Louizos et al., ICLR 2018, arXiv 1712.01312"
    hard = False

    def start(self, worth_RU: Tensor) -> dict[str, Tensor]:
        """Logits in [1.5, 3.5]."""
        return {"logit": 2.5 + worth_RU}

    def margin(self, scores: Scores) -> Tensor:
        """The logit."""
        return scores["logit"]

    def gate(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """A sample, the same for all images of a batch."""
        logit = scores["logit"]
        u = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((u.log() - (1 - u).log() + logit) / BETA)
        return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

    def price(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The probability of not being zero."""
        return torch.sigmoid(scores["logit"] - BETA * math.log(-LOW / HIGH))

    @torch.no_grad()
    def clamp_(self, scores: Scores) -> None:
        """To the logits of about 1 % and 99 %."""
        scores["logit"].clamp_(-LARGEST, LARGEST)


estimators.register("hard_concrete")(HardConcrete())
