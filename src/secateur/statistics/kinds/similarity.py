"""How much a branch or block changes the residual stream it is added to.

Measured on the stream itself (after LayerScale and, for post-norm hosts, after the norm), so the
recorded update is exactly what was added. Legend: B batch, N tokens, D residual width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind

TINY = 1e-12


def angle(cosine: Tensor) -> Tensor:
    """Angular distance arccos(cos) / pi, in [0, 1]; fp64, since arccos is steep near 1."""
    return cosine.double().clamp(-1, 1).arccos() / torch.pi


def _add_similarity_(sums: Sums, before_BND: Tensor, after_BND: Tensor) -> None:
    update_BND = after_BND - before_BND
    count = torch.tensor(float(before_BND.shape[0] * before_BND.shape[1]), dtype=torch.float64)
    cosine_BN = F.cosine_similarity(before_BND, after_BND, dim=-1)
    norm_BN, after_BN, update_BN = (x.norm(dim=-1) for x in (before_BND, after_BND, update_BND))
    add_(sums, "count", count)
    add_(sums, "cosine", cosine_BN.sum(dtype=torch.float64))
    add_(sums, "angle", angle(cosine_BN).sum(dtype=torch.float64))
    add_(sums, "stream_norm", norm_BN.sum(dtype=torch.float64))
    add_(sums, "after_norm", after_BN.sum(dtype=torch.float64))
    add_(sums, "ratio", (update_BN / norm_BN.clamp(min=TINY)).sum(dtype=torch.float64))
    add_(sums, "stream_square", before_BND.square().sum(dtype=torch.float64))
    add_(sums, "update_square", update_BND.square().sum(dtype=torch.float64))
    add_(sums, "update_sum", update_BND.sum((0, 1), dtype=torch.float64))


@statistics_kind(
    "branch_similarity", scope="branch", sites=("stream", "update"), covers=("update_mean",)
)
def branch_similarity(sums: Sums, seen: Seen) -> None:
    """Sums over tokens of cos(x, x + update), its angle, norms, and the update itself (D,)."""
    before = seen["stream"].float()
    _add_similarity_(sums, before, before + seen["update"].float())


@statistics_kind("block_similarity", scope="block", sites=("stream", "update"))
def block_similarity(sums: Sums, seen: Seen) -> None:
    """The same for a whole block: x before its first branch against x after its last one."""
    before = seen["stream"].float()
    _add_similarity_(sums, before, before + seen["update"].float())


@statistics_kind("update_mean", scope="branch", sites=("update",))
def update_mean(sums: Sums, seen: Seen) -> None:
    """Sum over tokens of the branch's update: `update_sum` (D,), and `count`."""
    update_BND = seen["update"]
    count = torch.tensor(float(update_BND.shape[0] * update_BND.shape[1]), dtype=torch.float64)
    add_(sums, "count", count)
    add_(sums, "update_sum", update_BND.sum((0, 1), dtype=torch.float64))
