"""The last look at a smaller model before it is handed over: it is counted, and is within budget.

Plans predict what a cut leaves. Whatever makes a model larger than predicted (a bias that a repair
adds, a linear layer in place of others, a weight that was shared) is found here, since the model
itself is counted: its parameters, and its multiply-accumulates in a forward pass.
"""

from torch import nn

from secateur.allocation.budget import Budget, CostBudget
from secateur.allocation.target import cost_limit
from secateur.errors import UserError
from secateur.measurement.counting import counted_anywhere
from secateur.models.types import Anatomy

ROUNDING = 1e-9
"""Share of a limit by which a product such as 0.7 * 10 may miss a whole number."""


class OverBudgetError(UserError):
    """A cut model is larger than its budget allows, and is not handed over."""


def require_within(model: nn.Module, before: Anatomy, budget: Budget, goal: str) -> None:
    """OverBudgetError unless `model`, cut from one of anatomy `before`, is within `budget`.

    Budgets in MACs and parameters are counted; those in milliseconds were measured when the model
    was cut, and shares of layers and drops are what the plan says.
    """
    if not isinstance(budget, CostBudget) or budget.unit == "ms":
        return
    limit = cost_limit(before, budget)
    if budget.unit == "params":
        reached = sum(p.numel() for p in model.parameters())
    else:
        reached = counted_anywhere(model, before.input_size).macs
    if reached > limit * (1 + ROUNDING):
        unit = {"macs": "MACs", "params": "parameters"}[budget.unit]
        raise OverBudgetError(
            f"the cut model has {reached:,} {unit}, more than the {limit:,.0f} of budget "
            f"'{goal}', so it is not handed over; prune to a smaller budget, and report the "
            "model's class with this sentence as an error of secateur."
        )
