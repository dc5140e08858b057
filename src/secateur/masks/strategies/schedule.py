"""Scores learn from the task alone; how many units stay, a schedule says.

With equal scores at the start (criterion `none`) and straight-through gates this is movement
pruning on structures: a score moves by -lr dL/dz, and dL/dz is the sum of w dL/dw over the weights
of the unit, so units whose weights grow gain.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from secateur.masks.bank import GateBank
from secateur.masks.controller import Controller
from secateur.masks.pricing import Pricing
from secateur.masks.projection import least_cost, project
from secateur.masks.strategies.lagrangian import FIRST_RATE, LARGEST_RATE, TRAVEL
from secateur.masks.strategy import NamedStrategy, SearchStrategy, WaySettings, strategies
from secateur.training.lesson import Lesson, Moment, Terms

PROJECTIONS = 100
"""How often, at most, the masks follow the scores in a search."""
TAKEOVERS = 12
"""The same where what stays takes over, which costs a pass over images each time."""


class Schedule(SearchStrategy):
    """The masks are the projection of the scores onto a target that falls to the budget."""

    def __init__(self, bank: GateBank, pricing: Pricing, settings: WaySettings) -> None:
        self.module = self.bank = bank
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(bank.parameters(), lr=FIRST_RATE)
        self.pricing, self.travel = pricing, settings.travel or TRAVEL
        self.controller = Controller(budget=pricing.share, settings=settings.controller)
        self._least = least_cost(bank.gates, pricing)
        self._projected = 0

    def before_step(self, moment: Moment) -> None:
        """Project anew, now and then."""
        self.bank.renew()
        if (due := self.due(moment.share)) >= self._projected:
            self._projected = due + 1
            limit = max(self.controller.target() * self.pricing.dense, self._least)
            pricing = replace(self.pricing, limit=limit)
            self.close(project(self.bank.gates, self.bank.margins(), pricing))

    def due(self, share: float) -> int:
        """How many projections belong before that share of the search, the first one aside."""
        return int(share * (PROJECTIONS if self.takeover is None else TAKEOVERS))

    def terms(self, model: torch.nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        """None."""
        self.bank.renew()
        return {}

    def after_step(self, moment: Moment) -> None:
        """Keep scores in range, and set their pace for the next step."""
        self.bank.clamp_()
        pace = moment.share - self.controller.share
        self.controller.share = moment.share
        for group in self.optimizer.param_groups:
            group["lr"] = min(self.travel * pace, LARGEST_RATE)

    def state_dict(self) -> dict[str, Any]:
        """How far the search is, and the masks of the moment."""
        return {
            "share": self.controller.share,
            "projected": self._projected,
            "kept": self.bank.kept(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.controller.share, self._projected = state["share"], state["projected"]
        self.bank.hold(state["kept"])

    def log(self) -> Mapping[str, float]:
        """The target."""
        return {"target_percent": 100 * self.controller.target()}


strategies.register("schedule")(
    NamedStrategy(
        title="Scores learn from the task, a schedule sets how many units stay",
        source="Movement pruning (Sanh et al., NeurIPS 2020; Lagunas et al., arXiv 2109.04838)",
        make=Schedule,
    )
)
