"""The budget as a constraint in training: an augmented Lagrangian on the counted cost.

g = cost / dense - κ(t) has no unit, so the same settings serve parameters, MACs and
milliseconds. λ rises while the model is too large (dual ascent) and decays when it is small
enough (anti-windup); κ falls cubically from 1 to the budget over the first part of the search.
Source of the ascent: CoFi (Xia et al., ACL 2022); of the cubic ramp: Zhu & Gupta, arXiv
1710.01878.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """`ascent` is what λ gains over a whole search at g = 1, however many steps that takes.

    `damping` is μ, `largest` the most that λ may be, `decay` its factor per step while g < 0, and
    `ramp` the share of the search over which the target falls.
    """

    ascent: float = 15.0
    damping: float = 10.0
    largest: float = 20.0
    decay: float = 0.9
    ramp: float = 0.6


@dataclass(slots=True, kw_only=True)
class Controller:
    """λ and how much of the search is done; `budget` is a share of the dense cost."""

    budget: float
    settings: ControllerSettings
    lam: float = 0.0
    share: float = 0.0

    def target(self) -> float:
        """κ at the present share of the search."""
        done = min(1.0, self.share / max(1e-9, self.settings.ramp))
        return self.budget + (1 - self.budget) * (1 - done) ** 3

    def penalty(self, cost: Tensor) -> Tensor:
        """λ g + μ/2 max(g, 0)² of a cost that is a share of the dense one."""
        gap = cost - self.target()
        return self.lam * gap + self.settings.damping / 2 * gap.clamp(min=0).square()

    def advance_(self, cost: float, share: float) -> None:
        """Move λ by the gap of `cost`, as the search goes on to `share`."""
        gap = cost - self.target()
        raised = self.lam + self.settings.ascent * (share - self.share) * gap
        lam = min(max(raised, 0.0), self.settings.largest)
        self.lam = lam * self.settings.decay if gap < 0 else lam
        self.share = share
