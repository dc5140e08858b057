"""Scores learn from the task per cost, and masks meet the falling target at every step.

min over masks of L_task subject to cost <= κ(t) dense, by projected gradient descent: a score moves
against dL/dz divided by what the unit costs, so that scores of cheap and dear units compare, and
the masks are the projection of the scores onto the target. A multiplier λ would move all such
scores alike, so there is none. What stays takes over from what closes
(`secateur.masks.removal.takeover`), and weights train under the masks that will be removed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.masks.bank import GateBank
from secateur.masks.masks import masks_of
from secateur.masks.pricing import Pricing, exact_cost, left_of_masks, unit_prices
from secateur.masks.strategies.lagrangian import Lagrangian
from secateur.masks.strategies.schedule import Schedule
from secateur.masks.strategy import NamedStrategy, SearchStrategy, WaySettings, strategies

EVERY = 0.08
"""Share of the search between projections."""
LAST = 0.8
"""Share of the search after which masks stay."""
TRAVEL = 0.1
"""How far a score goes in a whole search under an ordinary gradient that keeps its sign: little,
since at a trained optimum first-order gradients vanish for all units, the worthy ones too."""
MEMORY = 0.9
"""Momentum of the gradient."""
MOST = 3.0
"""Longest step of a score, in root mean squares of all."""
_AHEAD = 100.0


class PricedDescent(torch.optim.Optimizer):
    """s <- s - lr clip(m / rms(m)), m the momentum of dL/ds divided by the units' prices.

    The root mean square is over all scores, so that scores with weak gradients stay in their order,
    which steps of equal length, such as Adam's, would shuffle.
    """

    def __init__(self, bank: GateBank, prices: Callable[[], Mapping[str, Tensor]]) -> None:
        super().__init__(bank.parameters(), {"lr": 0.0})
        self.bank, self.prices = bank, prices

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, as far as there are gradients."""
        prices, moved = self.prices(), []
        for number, gate in enumerate(self.bank.gates):
            for score in self.bank.scores(number).values():
                if score.grad is None:
                    continue
                price = prices[gate.name].to(score)
                if score.shape != price.shape:  # one number for a whole gate
                    price = price.mean()
                state = self.state[score]
                mean = state.setdefault("mean", torch.zeros_like(score))
                # WHY: a unit of a head or layer that is gone costs nothing and decides nothing.
                grad = torch.where(price > 0, score.grad / price, torch.zeros_like(score))
                mean.lerp_(grad, 1 - MEMORY)
                moved.append((score, mean))
        if not moved:
            return
        rms = torch.cat([mean.flatten() for _, mean in moved]).square().mean().sqrt()
        rate = self.param_groups[0]["lr"]
        for score, mean in moved:
            score.sub_(rate * (mean / rms.clamp(min=1e-30)).clamp(-MOST, MOST))


class Projected(Schedule):
    """A schedule whose scores descend by price, and whose masks stay towards the end."""

    def __init__(self, bank: GateBank, pricing: Pricing, settings: WaySettings) -> None:
        super().__init__(bank, pricing, settings)
        self.optimizer = PricedDescent(bank, self._prices_now)
        self.travel = settings.travel or TRAVEL
        self._prices: dict[str, Tensor] = {}

    def due(self, share: float) -> int:
        """One every so often, and none in the last part."""
        return int(min(share, LAST) / EVERY + 1e-9)

    def close(self, after: Mapping[str, Tensor]) -> None:
        """Prices change with the masks."""
        super().close(after)
        self._prices = {}

    def margins(self) -> dict[str, Tensor]:
        """Those of the scores, units that are held before all others."""
        held = self.bank.held or {}
        return {
            name: margin_RU + _AHEAD * held[name] if name in held else margin_RU
            for name, margin_RU in self.bank.margins().items()
        }

    def log(self) -> Mapping[str, float]:
        """The size and what it should be."""
        left = left_of_masks(self.pricing, masks_of(self.bank.gates, self.bank.kept()))
        return {
            "kept_percent": 100 * exact_cost(self.pricing, left) / self.pricing.dense,
            "target_percent": 100 * self.controller.target(),
        }

    def _prices_now(self) -> Mapping[str, Tensor]:
        """What one more unit of each kind costs beside the units that are held."""
        if not self._prices:
            masks = masks_of(self.bank.gates, self.bank.kept())
            left = left_of_masks(self.pricing, masks)
            device = next(self.bank.parameters()).device
            prices = unit_prices(self.pricing, self.bank.gates, masks, left)
            self._prices = {name: price.to(device) for name, price in prices.items()}
        return self._prices


def make(bank: GateBank, pricing: Pricing, settings: WaySettings) -> SearchStrategy:
    """Forms that multiply by soft values cannot be held; theirs is the Lagrangian."""
    return (Projected if bank.form.hard else Lagrangian)(bank, pricing, settings)


strategies.register("projected")(
    NamedStrategy(
        title="Scores learn from the task per cost, masks are projected onto the falling target",
        source=(
            "movement pruning (Sanh et al., NeurIPS 2020) and ChipNet (ICLR 2021); the metric of "
            "prices and the takeover are derived here"
        ),
        make=make,
    )
)
