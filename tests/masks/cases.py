"""Gates on tiny hosts, with scores by chance."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from secateur.allocation.candidates import Limits
from secateur.allocation.costs import cost_function
from secateur.errors import UserError
from secateur.masks.bank import GateBank
from secateur.masks.estimator import estimators
from secateur.masks.gates import Gate, allowed, keep
from secateur.masks.granularity import Scope, gates_of, granularities, silenced_by_weights
from secateur.masks.pricing import Pricing
from secateur.models.host import host_of
from secateur.models.types import ALL_GROUPS, Anatomy
from tests.hosts import HOSTS, anatomy_of, shared

FREE = Limits(align={}, minimum={})
"""Any width of at least one."""


def scope_of(
    model: nn.Module, anatomy: Anatomy, limits: Limits = FREE, *, width: bool = False
) -> Scope:
    """Everything that a model offers may be gated, the stream only with `width`."""
    return Scope(
        anatomy=anatomy,
        groups=frozenset(ALL_GROUPS) - (set() if width else {"width"}),
        limits=limits,
        linear=silenced_by_weights(host_of(model)),
    )


@cache
def gates_for(name: str, sharing: str, *, width: bool = False) -> tuple[Gate, ...]:
    """The gates of a strategy on a host."""
    scope = scope_of(shared(name), anatomy_of(name), width=width)
    return tuple(gates_of(granularities.get(sharing), scope))


def offered(name: str, sharing: str) -> bool:
    """Whether a strategy finds something to gate on a host."""
    try:
        gates_for(name, sharing)
    except UserError:
        return False
    return True


def narrows(name: str, sharing: str) -> bool:
    """Whether a strategy gates the stream of a host."""
    gates = gates_for(name, sharing, width=True)
    return any(act.site == "width" for gate in gates for act in gate.acts)


CASES = [(name, s) for name in HOSTS for s in granularities.names() if offered(name, s)]

WIDE = [(*case, False) for case in CASES] + [(*case, True) for case in CASES if narrows(*case)]
"""Hosts and strategies, with gates on branches alone and with the stream."""


def random_margins(gates: Sequence[Gate], seed: int = 0) -> dict[str, Tensor]:
    """Normal margins."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randn(g.rows, g.units, generator=generator) for g in gates}


def random_kept(gates: Sequence[Gate], seed: int = 0) -> dict[str, Tensor]:
    """The best units by random margins; how many, chance decides gate by gate."""
    generator = torch.Generator().manual_seed(seed)
    margins = random_margins(gates, seed)
    # WHY at least 4 channels: a norm over fewer magnifies rounding.
    least = [4 if g.group == "width" else 0 for g in gates]
    counts = [int(torch.randint(n, g.most, (), generator=generator)) if n < g.most else g.most
              for n, g in zip(least, gates, strict=True)]  # fmt: skip
    return {
        g.name: keep(g, margins[g.name], allowed(g, count))
        for g, count in zip(gates, counts, strict=True)
    }


def bank_of(gates: Sequence[Gate], form: str = "straight_through") -> GateBank:
    """Gates whose units are worth what chance says."""
    generator = torch.Generator().manual_seed(1)
    worths = {g.name: 2 * torch.rand(g.rows, g.units, generator=generator) - 1 for g in gates}
    return GateBank(gates, estimators.get(form), worths)


def pricing_of(
    anatomy: Anatomy, share: float, unit: str = "params", limits: Limits = FREE
) -> Pricing:
    """A budget of that share of the dense cost."""
    cost_of = cost_function(anatomy, unit)
    return Pricing(anatomy=anatomy, cost_of=cost_of, limits=limits, limit=share * cost_of({}))
