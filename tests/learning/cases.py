"""Gates on tiny hosts, with scores by chance."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from secateur.anatomy.family import family_of
from secateur.anatomy.types import ALL_GROUPS, Anatomy
from secateur.errors import UserError
from secateur.learning.bank import GateBank
from secateur.learning.form import forms
from secateur.learning.gates import Gate, allowed, keep
from secateur.learning.pricing import Pricing
from secateur.learning.sharing import Scope, gates_of, sharings
from secateur.planning.costs import cost_function
from secateur.planning.menus import Limits
from tests.hosts import HOSTS, anatomy_of, shared

FREE = Limits(align={}, minimum={})
"""Any width of at least one."""


def scope_of(model: nn.Module, anatomy: Anatomy, limits: Limits = FREE) -> Scope:
    """Everything that a model offers may be gated."""
    family = family_of(model)
    return Scope(
        anatomy=anatomy,
        groups=frozenset(ALL_GROUPS),
        limits=limits,
        linear=frozenset(b.id for b in anatomy.branches if family.writes_linearly(model, b)),
    )


@cache
def gates_for(name: str, sharing: str, limits: Limits = FREE) -> tuple[Gate, ...]:
    """The gates of a strategy on a host."""
    return tuple(gates_of(sharings.get(sharing), scope_of(shared(name), anatomy_of(name), limits)))


def offered(name: str, sharing: str) -> bool:
    """Whether a strategy finds something to gate on a host."""
    try:
        gates_for(name, sharing)
    except UserError:
        return False
    return True


CASES = [(name, s) for name in HOSTS for s in sharings.names() if offered(name, s)]


def random_margins(gates: Sequence[Gate], seed: int = 0) -> dict[str, Tensor]:
    """Normal margins."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randn(g.rows, g.units, generator=generator) for g in gates}


def random_kept(gates: Sequence[Gate], seed: int = 0) -> dict[str, Tensor]:
    """The best units by random margins; how many, chance decides gate by gate."""
    generator = torch.Generator().manual_seed(seed)
    margins = random_margins(gates, seed)
    counts = [int(torch.randint(g.most + 1, (), generator=generator)) for g in gates]
    return {
        g.name: keep(g, margins[g.name], allowed(g, count))
        for g, count in zip(gates, counts, strict=True)
    }


def bank_of(gates: Sequence[Gate], form: str = "straight_through") -> GateBank:
    """Gates whose units are worth what chance says."""
    generator = torch.Generator().manual_seed(1)
    worths = {g.name: 2 * torch.rand(g.rows, g.units, generator=generator) - 1 for g in gates}
    return GateBank(gates, forms.get(form), worths)


def pricing_of(
    anatomy: Anatomy, share: float, unit: str = "params", limits: Limits = FREE
) -> Pricing:
    """A budget of that share of the dense cost."""
    cost_of = cost_function(anatomy, unit)
    return Pricing(anatomy=anatomy, cost_of=cost_of, limits=limits, limit=share * cost_of({}))
