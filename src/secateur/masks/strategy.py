"""How a search strategy is registered: a hook of the training loop that ends in margins."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from secateur.masks.bank import GateBank
from secateur.masks.controller import ControllerSettings
from secateur.masks.pricing import Pricing
from secateur.registry import Registry
from secateur.training.lesson import Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class WaySettings:
    """`travel` is how far a score can go in a whole search, None for what the way has by default;
    `lasso` is the pull of group lasso."""

    controller: ControllerSettings = field(default_factory=ControllerSettings)
    travel: float | None = None
    lasso: float = 0.3


class SearchStrategy(Hook):
    """Takes part in training with the gates of `bank`; afterwards `margins` rank the units."""

    bank: GateBank
    takeover: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None] | None = None
    """Called with kept units (R, U) before and after masks change, while the old ones act."""

    def close(self, after: Mapping[str, Tensor]) -> None:
        """Hold other masks, once what stays has taken over from what closes."""
        if self.takeover is not None:
            self.takeover(self.bank.kept(), after)
        self.bank.hold(after)

    def margins(self) -> dict[str, Tensor]:
        """How far each unit (R, U) is from being masked, by gate, to be projected on a budget."""
        return self.bank.margins()


Make = Callable[[GateBank, Pricing, WaySettings], SearchStrategy]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedStrategy:
    """A way with what it is called and where it comes from."""

    title: str
    source: str
    make: Make


strategies: Registry[NamedStrategy] = Registry("way of searching", "secateur.masks.strategies")
