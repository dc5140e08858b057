"""What a model gives, as one tensor: logits, or all of its features.

Legend: B images, T tokens, C channels.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import UserError

RECORDED = ("loss", "hidden_states", "attentions")
"""Parts of outputs that tell of the way, or of labels."""


def outputs_of(output: object) -> Tensor:
    """The outputs (B, C) or (B, T, C) in what a model returns.

    Tensors stay as they are. Of an object or mapping with `logits` it is those; otherwise all
    features are joined along the tokens, maps (B, C, H, W) as H·W tokens and pooled ones as one,
    padded with zeros to the widest, which neither angles nor distances see. UserError where there
    are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", None) if logits is None else logits
    if isinstance(logits, Tensor):
        return logits
    found = list(features_in(output))
    if not found:
        raise UserError(
            f"a model gives a {type(output).__name__}, in which there are neither logits nor "
            "features; give a model whose outputs are one tensor or several."
        )
    if len(found) == 1:
        return found[0]
    tokens = [_as_tokens(features) for features in found]
    widest = max(t.shape[-1] for t in tokens)
    return torch.cat([F.pad(t_BTC, (0, widest - t_BTC.shape[-1])) for t_BTC in tokens], dim=1)


def features_in(output: object) -> Iterator[Tensor]:
    """All features in what a model returns, one after the other."""
    if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1:
        yield output
    elif isinstance(output, Mapping):
        for name, part in output.items():
            if name not in RECORDED:
                yield from features_in(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from features_in(part)


def _as_tokens(features: Tensor) -> Tensor:
    if features.ndim == 2:
        return features[:, None]
    return features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
