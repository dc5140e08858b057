"""Activation variance: what is lost when a unit is replaced by its mean.

Legend: H heads, V value dims, F hidden neurons.
"""

from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.criteria.scores.energy import by_group, energy_of, mean_of, written


@criterion(
    "variance",
    title="Activation variance (VBP)",
    source="Variance-Based Pruning, ICCV 2025, arXiv 2507.12988",
    needs={
        "hidden": ("hidden_energies",),
        "vo": ("context_energies",),
        "heads": ("context_energies",),
    },
)
def variance(question: Question) -> Tensor:
    """Var(a) over all tokens, after the activation function."""
    sums = written(question)
    variance_U = energy_of(sums) - mean_of(sums).square()
    return by_group(question, variance_U.clamp(min=0))
