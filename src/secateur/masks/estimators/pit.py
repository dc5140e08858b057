"""Gates of pruning in time (PIT): the absolute value of a free parameter against one half."""

import torch
from torch import Tensor

from secateur.masks.estimator import LARGEST, Scores, estimators, straight_through

CUT = 0.5


class Pit:
    """z = 1[|α| > 0.5], dL/d|α| = dL/dz; α begins near 1."""

    title = "PIT: |α| above one half"
    source = "Risso et al., IEEE Trans. Computers 2023, arXiv 2203.14768"
    hard = True

    def start(self, worth_RU: Tensor) -> dict[str, Tensor]:
        """Near 1, in the order of the criterion: [0.75, 1.25]."""
        return {"alpha": 1 + 0.25 * worth_RU}

    def margin(self, scores: Scores) -> Tensor:
        """|α| - 0.5."""
        return scores["alpha"].abs() - CUT

    def gate(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The hard mask."""
        return straight_through(live_RU, scores["alpha"].abs())

    def price(self, scores: Scores, live_RU: Tensor) -> Tensor:
        """The hard mask."""
        return straight_through(live_RU, scores["alpha"].abs())

    @torch.no_grad()
    def clamp_(self, scores: Scores) -> None:
        """To [-2, 2]."""
        scores["alpha"].clamp_(-LARGEST, LARGEST)


estimators.register("pit")(Pit())
