"""How often hidden neurons are active, and query/key energies token by token (CORP).

Legend: B batch, N tokens, H heads, K query/key dims, F hidden neurons.
"""

import torch

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind

ACTIVE = 0.01
"""A neuron is active where it exceeds this share of the root mean square of the image's neurons."""


@statistics_kind("hidden_activity", scope="mlp", sites=("hidden",))
def hidden_activity(sums: Sums, seen: Seen) -> None:
    """Sum of squares (F,) and number of active tokens (F,) of each neuron after the activation.

    The threshold is set by each image, so that nothing depends on how images fall into batches.
    """
    square_BNF = seen["hidden"].float().square()
    count = torch.tensor(float(square_BNF.shape[0] * square_BNF.shape[1]), dtype=torch.float64)
    threshold_B11 = ACTIVE**2 * square_BNF.mean((1, 2), keepdim=True)
    add_(sums, "count", count)
    add_(sums, "square", square_BNF.sum((0, 1), dtype=torch.float64))
    add_(sums, "active", (square_BNF > threshold_B11).sum((0, 1), dtype=torch.float64))


@statistics_kind("logit_energies", scope="attention", sites=("query", "key"))
def logit_energies(sums: Sums, seen: Seen) -> None:
    """Sum over tokens of q^2 k^2, query and key of the same token, keys centred: (H, K)."""
    q_BNHK, k_BNHK = seen["query"].float(), seen["key"].float()
    k_BNHK = k_BNHK - k_BNHK.mean(1, keepdim=True)
    count = torch.tensor(float(q_BNHK.shape[0] * q_BNHK.shape[1]), dtype=torch.float64)
    add_(sums, "count", count)
    add_(sums, "product", (q_BNHK * k_BNHK).square().sum((0, 1), dtype=torch.float64))
