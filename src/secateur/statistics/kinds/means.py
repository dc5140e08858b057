"""Activations averaged over the tokens of an image before anything else (Minitron).

Legend: B batch, N tokens, H heads, V value dims per head, F hidden neurons.
"""

import torch

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


@statistics_kind("hidden_means", scope="mlp", sites=("hidden",))
def hidden_means(sums: Sums, seen: Seen) -> None:
    """Sum over images of (mean over tokens of |a|)^2 for each neuron: `square` (F,)."""
    mean_BF = seen["hidden"].float().abs().mean(1)
    add_(sums, "images", torch.tensor(float(len(mean_BF)), dtype=torch.float64))
    add_(sums, "square", mean_BF.square().sum(0, dtype=torch.float64))


@statistics_kind("head_means", scope="attention", sites=("context",))
def head_means(sums: Sums, seen: Seen) -> None:
    """Sum over images of (mean over tokens of a head's norm)^2: `square` (H,)."""
    mean_BH = seen["context"].float().norm(dim=-1).mean(1)
    add_(sums, "images", torch.tensor(float(len(mean_BH)), dtype=torch.float64))
    add_(sums, "square", mean_BH.square().sum(0, dtype=torch.float64))
