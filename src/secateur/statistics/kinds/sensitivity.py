"""How much the output depends on what a branch adds to the stream.

With labels drawn from the model's own prediction, the gradients g of the cross-entropy give the
Fisher metric: for a small error e of the update, KL(dense || changed) ≈ 1/2 E[(sum_t g_t e_t)^2]
(Martens, JMLR 2020, arXiv 1412.1193, §5). Legend: B batch, N tokens, D residual width.
"""

import torch

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


@statistics_kind("sensitivity", scope="branch", sites=("update",), gradient=True)
def sensitivity(sums: Sums, seen: Seen) -> None:
    """Sums over images of |g_t|^2 by token position (N,), and of g g^T over tokens (D, D)."""
    g_BND = seen["update.grad"].float()
    add_(sums, "images", torch.tensor(float(g_BND.shape[0]), dtype=torch.float64))
    add_(sums, "token_square", g_BND.square().sum((0, 2), dtype=torch.float64))
    g_TD = g_BND.flatten(0, 1)
    add_(sums, "output_gram", g_TD.T @ g_TD)
