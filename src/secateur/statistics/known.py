"""What is known of a branch beside the tensors that pass: biases of its logits, weights of tokens.

Legend: B batch, N tokens, H heads, W windows of an image, T tokens of a window; where attention
goes over all tokens there is one window.
"""

import torch
from torch import Tensor

from secateur.models.types import Branch
from secateur.models.weights import AttentionWeights, BranchWeights
from secateur.statistics.registry import Seen


def known_of(weights: BranchWeights, branch: Branch, weights_N: Tensor | None) -> dict[str, Tensor]:
    """What a kind may need of a branch, by name.

    The softmax `scale`; `logit_bias` (W, H, T, T), position biases and the mask of shifted windows;
    the number of `windows`; and the `weights` (W, T) of tokens, where they differ: padding has 0.
    """
    known: dict[str, Tensor] = {}
    windows = branch.windows
    if isinstance(weights, AttentionWeights):
        known["scale"] = torch.tensor(weights.scale)
        bias_HTT = weights.logit_bias_HNN
        mask_WTT = None if windows is None else windows.mask(weights.q_HKD)
        if bias_HTT is not None:
            known["logit_bias"] = bias_HTT[None]
        if mask_WTT is not None:
            known["logit_bias"] = mask_WTT[:, None] + known.get("logit_bias", 0)
    if windows is None:
        return known if weights_N is None else known | {"weights": weights_N[None]}
    known["windows"] = torch.tensor(windows.count)
    if windows.padded or weights_N is not None:
        ones_N = torch.ones(branch.tokens) if weights_N is None else weights_N
        known["weights"] = windows.placed(ones_N)
    return known


def per_image(sums: Tensor, seen: Seen, site: str) -> Tensor:
    """Sums over the tokens that pass together, (B W, …), as sums over those of an image (B, …)."""
    if site not in IN_WINDOWS or "windows" not in seen:
        return sums
    by_image: Tensor = sums.unflatten(0, (-1, int(seen["windows"])))
    return by_image.sum(1)


IN_WINDOWS = ("query", "key", "value", "context")
"""The sites whose tokens pass window by window."""


def batch_weights(weights_WT: Tensor | None, like_BT: Tensor) -> Tensor:
    """The weights of tokens, (W, T) or (T,), for those of a whole batch (B W, T); ones for none."""
    if weights_WT is None:
        return torch.ones_like(like_BT, dtype=torch.float32)
    weights_WT = weights_WT.to(like_BT.device).float().view(-1, like_BT.shape[1])
    return weights_WT.repeat(like_BT.shape[0] // len(weights_WT), 1)
