"""Second moments of what a branch adds to the stream, jointly with what it sees.

Legend: B batch, N tokens, T their product, D residual width.
"""

import torch
from torch import Tensor

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


def add_joint_moments_(sums: Sums, x_BND: Tensor, y_BND: Tensor) -> None:
    """Add `count` (), `x_sum`, `y_sum` (D,), `x_gram`, `xy_gram` = sum x y^T, `y_gram` (D, D)."""
    x_TD, y_TD = x_BND.float().flatten(0, 1), y_BND.float().flatten(0, 1)
    add_(sums, "count", torch.tensor(float(x_TD.shape[0]), dtype=torch.float64))
    add_(sums, "x_sum", x_TD.sum(0, dtype=torch.float64))
    add_(sums, "y_sum", y_TD.sum(0, dtype=torch.float64))
    # WHY: the stream has dims hundreds of times larger than others, which fp32 sums would blur.
    add_(sums, "x_gram", (x_TD.T @ x_TD).double())
    add_(sums, "xy_gram", (x_TD.T @ y_TD).double())
    add_(sums, "y_gram", (y_TD.T @ y_TD).double())


@statistics_kind("linear_moments", scope="branch", sites=("input", "update"))
def linear_moments(sums: Sums, seen: Seen) -> None:
    """Joint moments of what the layer reads (behind its norm) and of its update."""
    add_joint_moments_(sums, seen["input"], seen["update"])


@statistics_kind("stream_moments", scope="branch", sites=("stream", "update"))
def stream_moments(sums: Sums, seen: Seen) -> None:
    """Joint moments of the stream before the branch and of the stream after it."""
    before = seen["stream"].float()
    add_joint_moments_(sums, before, before + seen["update"].float())


@statistics_kind("block_stream_moments", scope="block", sites=("stream", "update"))
def block_stream_moments(sums: Sums, seen: Seen) -> None:
    """The same for a whole block."""
    before = seen["stream"].float()
    add_joint_moments_(sums, before, before + seen["update"].float())
