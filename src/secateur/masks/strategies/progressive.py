"""Units that the criterion values least fade to zero while the weights adapt."""

import torch
from torch import Tensor

from secateur.masks.bank import GateBank
from secateur.masks.pricing import Pricing
from secateur.masks.projection import project
from secateur.masks.strategy import NamedStrategy, SearchStrategy, WaySettings, strategies
from secateur.training.lesson import Lesson, Moment, Terms


class Progressive(SearchStrategy):
    """No scores are learned: what is to go is fixed at the start, and multiplied by 1 - t."""

    def __init__(self, bank: GateBank, pricing: Pricing, settings: WaySettings) -> None:
        self.bank = bank
        self._margins = bank.margins()
        self._kept = project(bank.gates, self._margins, pricing)
        bank.hold(self._kept)

    def before_step(self, moment: Moment) -> None:
        """Fade a little further."""
        self.bank.renew()
        rest = 1 - moment.share
        self.bank.fade({name: torch.where(kept, 1.0, rest) for name, kept in self._kept.items()})

    def terms(self, model: torch.nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        """None."""
        self.bank.renew()
        return {}

    def margins(self) -> dict[str, Tensor]:
        """Those at the start."""
        return self._margins


strategies.register("progressive")(
    NamedStrategy(
        title="The least valued units fade to zero",
        source=(
            "UPop (Shi et al., ICML 2023) and HESSO (Chen et al., arXiv 2409.09085), with one "
            "choice of units at the start"
        ),
        make=Progressive,
    )
)
