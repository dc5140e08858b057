"""Scores learn from the task and from a Lagrangian on the counted cost.

Weights and scores learn from the same images in the same step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks.bank import GateBank
from secateur.masks.controller import Controller
from secateur.masks.masks import Left, masks_of
from secateur.masks.pricing import Pricing, exact_cost, left_of_masks, unit_prices
from secateur.masks.strategy import NamedStrategy, SearchStrategy, WaySettings, strategies
from secateur.training.lesson import Lesson, Moment, Terms

TRAVEL = 5.0
"""How far a score can go in a whole search: across its range and back."""
LARGEST_RATE = 0.25
FIRST_RATE = 0.01


class Lagrangian(SearchStrategy):
    """Holds the gates of a model to a budget while it trains.

    The cost in the loss is the counted cost of the model that would be exported at this step;
    only its gradient is that of the gates. `travel` is how far a score can go in the whole search
    if its gradient never changes sign: the learning rate is that by the number of steps.
    """

    def __init__(self, bank: GateBank, pricing: Pricing, settings: WaySettings) -> None:
        self.module = self.bank = bank
        self.optimizer = self._adam = torch.optim.Adam(bank.parameters(), lr=FIRST_RATE)
        self.pricing, self.travel = pricing, settings.travel or TRAVEL
        self.controller = Controller(budget=pricing.share, settings=settings.controller)
        self.cost = 1.0
        self._kept: dict[str, Tensor] = {}
        self._prices: dict[str, Tensor] = {}
        self._priced: Left | None = None

    def before_step(self, moment: Moment) -> None:
        """Count the model as it would be exported now, and price its units."""
        self._kept = self.bank.chosen()
        masks = masks_of(self.bank.gates, self._kept)
        left = left_of_masks(self.pricing, masks)
        self.cost = exact_cost(self.pricing, left) / self.pricing.dense
        if left != self._priced:
            # WHY: prices follow from the shapes, up to which of several heads are gone.
            prices = unit_prices(self.pricing, self.bank.gates, masks, left)
            device = next(self.bank.parameters()).device
            self._prices = {name: price.to(device) for name, price in prices.items()}
            self._priced = left

    def terms(self, model: nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        """The penalty on the size."""
        self.bank.renew()
        prices = self.bank.prices(self._kept)
        sums = [(self._prices[name] * prices[name]).sum() for name in prices]
        seen = torch.stack(sums).sum()
        return {"size": self.controller.penalty(self.cost + (seen - seen.detach()))}

    def after_step(self, moment: Moment) -> None:
        """Keep scores in range, move λ, and set the pace of the scores for the next step."""
        self.bank.clamp_()
        pace = moment.share - self.controller.share
        self.controller.advance_(self.cost, moment.share)
        for group in self._adam.param_groups:
            group["lr"] = min(self.travel * pace, LARGEST_RATE)

    def state_dict(self) -> dict[str, Any]:
        """λ and the share of the search that is done."""
        return {"lam": self.controller.lam, "share": self.controller.share, "cost": self.cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.controller.lam, self.controller.share = state["lam"], state["share"]
        self.cost = state["cost"]

    def log(self) -> Mapping[str, float]:
        """The size, what it should be, and the pressure."""
        return {
            "kept_percent": 100 * self.cost,
            "target_percent": 100 * self.controller.target(),
            "pressure": self.controller.lam,
        }


strategies.register("lagrangian")(
    NamedStrategy(
        title="Scores under a Lagrangian on the counted cost",
        source="CoFi (Xia et al., ACL 2022), on discrete counts",
        make=Lagrangian,
    )
)
