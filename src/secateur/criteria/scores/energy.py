"""Activation energy E[a^2]: how large a unit's output is on the calibration images.

Legend: H heads, K query/key dims, V value dims, F hidden neurons.
"""

import torch
from torch import Tensor

from secateur.criteria.registry import Question, criterion
from secateur.models.weights import AttentionWeights
from secateur.statistics import Sums


def energy_of(sums: Sums) -> Tensor:
    """E[a^2] from moments or energies."""
    square = sums["gram"].diagonal() if "gram" in sums else sums["square"]
    return square.double() / sums["count"]


def mean_of(sums: Sums) -> Tensor:
    """E[a] from moments or energies."""
    return sums["sum"] / sums["count"]


def written(question: Question) -> Sums:
    """The sums over what the writer reads, with second moments in full or on the diagonal."""
    for kind in ("hidden_moments", "context_moments", "hidden_energies", "context_energies"):
        if kind in question.sums:
            return question.sums[kind]
    raise KeyError(f"no activation evidence for {question.owner}")


def by_group(question: Question, unit_U: Tensor) -> Tensor:
    """Arrange per-dim values of the context as (H, V), or sum them to heads (H,)."""
    if question.group == "hidden":
        return unit_U
    assert isinstance(question.weights, AttentionWeights)
    unit_HV = unit_U.view(question.weights.shape.heads, -1)
    return unit_HV.sum(1) if question.group == "heads" else unit_HV


@criterion(
    "energy",
    title="Activation energy",
    source="E[a^2]; for query/key dims E[q^2] E[k^2] (CORP, arXiv 2602.05243)",
    needs={
        "hidden": ("hidden_energies",),
        "qk": ("logit_moments",),
        "vo": ("context_energies",),
        "heads": ("context_energies",),
    },
)
def energy(question: Question) -> Tensor:
    """E[a^2] over all tokens; keys are centred over tokens, as softmax sees them."""
    if question.group == "qk":
        sums = question.sums["logit_moments"]
        q_HK = torch.diagonal(sums["q_gram"], dim1=1, dim2=2).double() / sums["count"]
        k_HK = torch.diagonal(sums["k_gram"], dim1=1, dim2=2).double() / sums["count"]
        return q_HK * k_HK
    return by_group(question, energy_of(written(question)))
