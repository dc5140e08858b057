"""Candidates with the unit scores that they came from."""

from dataclasses import dataclass

from torch import Tensor

from secateur.allocation.types import Key, Menu


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Menus of all groups that may change, and the unit scores behind them."""

    menus: list[Menu]
    scores: dict[Key, Tensor]
