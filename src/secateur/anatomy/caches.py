"""What hosts keep of their weights between forward passes, in evaluation mode.

timm gathers position biases once and keeps the result until the mode is set again. Such a tensor
may be stale after a step of training, belongs to a graph that is gone, and cannot be copied.
"""

import copy

from torch import nn


def forget_cached_(model: nn.Module) -> None:
    """Drop what was worked out from weights; it is worked out again when needed."""
    for module in model.modules():
        cache = getattr(module, "attention_bias_cache", None)
        if isinstance(cache, dict):
            cache.clear()


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy."""
    forget_cached_(model)
    return copy.deepcopy(model)
