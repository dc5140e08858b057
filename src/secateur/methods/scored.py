"""Candidates with the unit scores that they came from."""

from dataclasses import dataclass

from torch import Tensor

from secateur.allocation.types import Candidates, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUnits:
    """Candidates of all groups that may change, and the unit scores behind them."""

    candidates: list[Candidates]
    scores: dict[Key, Tensor]
