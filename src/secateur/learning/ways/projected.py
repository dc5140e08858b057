"""Scores learn under a Lagrangian, and masks meet the falling target at every step.

Left to itself, the multiplier of a short search rises too late and the masks end above the budget,
so that the projection at the end closes many units at once, to which no weight could adapt. Here
the scores are projected onto the target that falls, a few times, and the masks held in between;
what stays takes over from what closes (`secateur.learning.takeover`), and weights train under the
masks that will be removed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.healing.lesson import Moment
from secateur.learning.bank import GateBank
from secateur.learning.pricing import Pricing
from secateur.learning.projection import least_cost, project
from secateur.learning.way import NamedWay, WaySettings, ways
from secateur.learning.ways.lagrangian import Lagrangian

EVERY = 0.08
"""Share of the search between projections."""
LAST = 0.8
"""Share of the search after which masks stay."""


class Projected(Lagrangian):
    """A Lagrangian whose masks are the projection of its scores.

    Forms that multiply by soft values in training cannot be held; with them it is the Lagrangian.
    """

    def __init__(self, bank: GateBank, pricing: Pricing, settings: WaySettings) -> None:
        super().__init__(bank, pricing, settings)
        self._least = least_cost(bank.gates, pricing)
        self._projected = 0

    def before_step(self, moment: Moment) -> None:
        """Project anew, now and then."""
        due = int(min(moment.share, LAST) / EVERY + 1e-9)
        if self.bank.form.hard and due >= self._projected:
            self._projected = due + 1
            limit = max(self.controller.target() * self.pricing.dense, self._least)
            after = project(
                self.bank.gates, self.bank.margins(), replace(self.pricing, limit=limit)
            )
            self.close(after)
        super().before_step(moment)

    def margins(self) -> dict[str, Tensor]:
        """Those of the scores, units that are held before all others."""
        held = self.bank.held
        return {
            name: margin_RU + (0 if held is None else _AHEAD * held[name])
            for name, margin_RU in self.bank.margins().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Also the masks of the moment."""
        return super().state_dict() | {"projected": self._projected, "held": self.bank.held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        self._projected = state["projected"]
        if state["held"] is not None:
            self.bank.hold(state["held"])


_AHEAD = torch.tensor(100.0)

ways.register("projected")(
    NamedWay(
        title="Scores under a Lagrangian, masks projected onto the falling target",
        source=(
            "CoFi (Xia et al., ACL 2022) for the scores, ChipNet (ICLR 2021) for the projection; "
            "the repair of what stays is derived here"
        ),
        make=Projected,
    )
)
