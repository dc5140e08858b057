"""What the residual stream carries in each of its channels, before and after every branch.

Legend: B batch, N tokens, D residual width.
"""

import torch

from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


@statistics_kind("stream_sums", scope="branch", sites=("stream", "update"))
def stream_sums(sums: Sums, seen: Seen) -> None:
    """Sums over tokens of the stream and its square before the branch, and after it: (D,)."""
    before_TD = seen["stream"].flatten(0, 1)
    after_TD = before_TD + seen["update"].flatten(0, 1)
    add_(sums, "count", torch.tensor(float(before_TD.shape[0]), dtype=torch.float64))
    for name, x_TD in (("before", before_TD), ("after", after_TD)):
        add_(sums, f"{name}_sum", x_TD.sum(0, dtype=torch.float64))
        wide_TD = x_TD if x_TD.dtype.itemsize >= 4 else x_TD.float()
        add_(sums, f"{name}_square", wide_TD.square().sum(0, dtype=torch.float64))


@statistics_kind("stream_gram", scope="stream", sites=())
def stream_gram(sums: Sums, seen: Seen) -> None:
    """Sum of x x^T (D, D) and `count` over boundaries of blocks and tokens, each of mean square 1.

    A token counts the same at every depth, as norms see it; the class token counts as one of the
    patches that `secateur.statistics.stream` keeps.
    """
    for point in range(int(seen["points"])):
        for part in ("class", "patches"):
            if (x_BTD := seen.get(f"{point}.{part}")) is None:
                continue
            x_ED = x_BTD.flatten(0, 1).double()
            power_E = x_ED.square().mean(1, keepdim=True)
            x_ED = x_ED / power_E.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
            add_(sums, "count", torch.tensor(float(len(x_ED)), dtype=torch.float64))
            add_(sums, "gram", x_ED.T @ x_ED)
