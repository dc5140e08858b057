"""Activations averaged over the tokens of an image before anything else (Minitron).

Legend: B batch, N tokens, H heads, V value dims per head, F hidden neurons.
"""

import torch

from secateur.statistics.known import batch_weights, per_image
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
    norm_BNH = seen["context"].float().norm(dim=-1)
    weights_BN1 = batch_weights(seen.get("weights"), norm_BNH[..., 0])[..., None]
    mean_BH, count_B1 = (
        per_image(part.sum(1), seen, "context") for part in (norm_BNH * weights_BN1, weights_BN1)
    )
    mean_BH = mean_BH / count_B1
    add_(sums, "images", torch.tensor(float(len(mean_BH)), dtype=torch.float64))
    add_(sums, "square", mean_BH.square().sum(0, dtype=torch.float64))
