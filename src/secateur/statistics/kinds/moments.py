"""First and second moments of what the writers read: hidden neurons and attention context.

Legend: B batch, N tokens, H heads, V value dims per head, F hidden neurons.
"""

import torch
from torch import Tensor

from secateur.statistics.known import batch_weights
from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


def add_moments_(sums: Sums, x_BNF: Tensor, weights_WN: Tensor | None = None) -> None:
    """Add `count` (), `sum` (F,) and `gram` (F, F) of x over tokens, weighted by position.

    Weights are (N,), or (W, N) for as many windows of each image.
    """
    x_TF = x_BNF.float().flatten(0, 1)
    weighted_TF = x_TF
    count = torch.tensor(float(x_TF.shape[0]), dtype=torch.float64)
    if weights_WN is not None:
        weights_BN = batch_weights(weights_WN, x_BNF[..., 0])
        weighted_TF = x_TF * weights_BN.flatten()[:, None]
        count = weights_BN.sum(dtype=torch.float64)
    add_(sums, "count", count)
    add_(sums, "sum", weighted_TF.sum(0, dtype=torch.float64))
    add_(sums, "gram", weighted_TF.T @ x_TF)


def add_energies_(sums: Sums, x_TF: Tensor, weights_T: Tensor | None = None) -> None:
    """Add `count` (), `sum` (F,) and `square` (F,) of rows x, of those with a weight."""
    x_TF = x_TF.float() if weights_T is None else x_TF.float()[weights_T > 0]
    add_(sums, "count", torch.tensor(float(x_TF.shape[0]), dtype=torch.float64))
    add_(sums, "sum", x_TF.sum(0, dtype=torch.float64))
    add_(sums, "square", x_TF.square().sum(0, dtype=torch.float64))


@statistics_kind("hidden_moments", scope="mlp", sites=("hidden",), covers=("hidden_energies",))
def hidden_moments(sums: Sums, seen: Seen) -> None:
    """Moments of the hidden neurons after the activation, over all tokens: (F,) and (F, F)."""
    add_moments_(sums, seen["hidden"], seen.get("weights"))


@statistics_kind(
    "context_moments", scope="attention", sites=("context",), covers=("context_energies",)
)
def context_moments(sums: Sums, seen: Seen) -> None:
    """Moments of the attention output before the projection, all heads jointly: (HV, HV)."""
    add_moments_(sums, seen["context"].flatten(2), seen.get("weights"))


@statistics_kind("hidden_energies", scope="mlp", sites=("hidden",))
def hidden_energies(sums: Sums, seen: Seen) -> None:
    """Sum and sum of squares of each hidden neuron: the diagonal of `hidden_moments`."""
    add_energies_(sums, seen["hidden"].flatten(0, 1))


@statistics_kind("context_energies", scope="attention", sites=("context",))
def context_energies(sums: Sums, seen: Seen) -> None:
    """Sum and sum of squares of each context dim, all heads jointly: (HV,)."""
    x_BNF = seen["context"].flatten(2)
    padding = seen.get("weights") if "windows" in seen else None
    real_BN = None if padding is None else batch_weights(padding, x_BNF[..., 0])
    add_energies_(sums, x_BNF.flatten(0, 1), None if real_BN is None else real_BN.flatten())


@statistics_kind("input_moments", scope="branch", sites=("input",))
def input_moments(sums: Sums, seen: Seen) -> None:
    """Moments of what a branch reads, behind its norm, over all tokens: (D,) and (D, D)."""
    add_moments_(sums, seen["input"])
