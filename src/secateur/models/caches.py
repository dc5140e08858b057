"""Copies of models, their mode, and what hosts keep of their weights between forward passes.

In evaluation mode, timm gathers position biases once and keeps the result until the mode is set
again. Such a tensor may be stale after a step of training, belongs to a graph that is gone, and
cannot be copied.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal

from torch import nn

from secateur.models.family import families, family_of
from secateur.models.modules import SlimAttention


def stated_names(kind: Literal["caches", "fused", "positions"]) -> frozenset[str]:
    """Attributes that hosts of any known family have for this.

    `caches` hold dictionaries of what was worked out from weights, `fused` say whether a layer
    takes a fused kernel for its attention, `positions` are tables that follow the image size.
    """
    stated = [family.statement for _, family in families.items()]
    if kind == "caches":
        return frozenset(name for one in stated for name in one.caches)
    found = [one.fused if kind == "fused" else one.stem.positions for one in stated]
    return frozenset(name for name in found if name is not None)


def forget_cached_(model: nn.Module) -> None:
    """Drop what was worked out from weights; it is worked out again when needed."""
    names = stated_names("caches")
    for module in model.modules():
        for name in names:
            cache = getattr(module, name, None)
            if isinstance(cache, dict):
                cache.clear()


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models in evaluation mode and every module back in its own mode afterwards.

    `train` and `eval`, which some hosts override, are not called.
    """
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for model in models:
            forget_cached_(model)
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
        for model in models:
            forget_cached_(model)


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy."""
    forget_cached_(model)
    return copy.deepcopy(model)


def shell_of(model: nn.Module) -> nn.Module:
    """A copy with modules of its own but the same tensors, which costs no memory.

    Branches may be assigned new weights, which are put in place of the old; nothing may be written
    into a tensor before `own_` was called.
    """
    forget_cached_(model)
    memo = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, memo)


def own_(shell: nn.Module, model: nn.Module) -> None:
    """Give a shell copies of the tensors that it still shares with its model."""
    shared = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    copies: dict[int, object] = {}
    for module in shell.modules():
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in list(own):
            if id(tensor) in shared:
                setattr(module, name, copy.deepcopy(tensor, copies))


def observable(model: nn.Module) -> nn.Module:
    """The model itself, or a shell whose attention is ours where hooks would miss the host's."""
    family = family_of(model)
    if not family.unseen(model):
        return model
    shell = shell_of(model)
    family.adopt_(shell)
    return shell


@contextmanager
def unfused(model: nn.Module, switches: Collection[str] = ()) -> Iterator[None]:
    """Our attention as plain matrix products, and that of hosts that have one of these switches.

    Ours then is also without the zeros with which it pads unequal widths for the fused kernel.
    """
    found = [(m, name) for m in model.modules() for name in switches if getattr(m, name, 0) is True]
    found += [(m, "fused_attn") for m in model.modules() if isinstance(m, SlimAttention)]
    found = [(module, name) for module, name in found if getattr(module, name) is True]
    for module, name in found:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in found:
            setattr(module, name, True)
