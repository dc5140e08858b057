"""Stochastic depth: in training, updates of branches are left out by chance, image by image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.layers import drop_path
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.family import family_of


@contextmanager
def stochastic_depth(model: nn.Module, rate: float) -> Iterator[None]:
    """Leave out updates with a chance that rises from 0 in the first block to `rate` in the last.

    Huang et al., arXiv 1603.09382, section 3, as timm and DeiT have it: by blocks in equal steps,
    what stays is scaled up by the chance that it does. In evaluation mode nothing is left out. It
    comes on top of what the model's own layers do. UserError for a model of an unknown family.
    """
    if not rate:
        yield
        return
    try:
        family = family_of(model)
    except UserError as error:
        raise UserError(f"drop_path cannot be had for this model: {error}") from error
    branches = family.read(model).branches
    last = max((branch.block for branch in branches), default=0)
    handles = []
    for branch in branches:
        hook_point = family.hook_points(model, branch)["update"]
        chance = rate * branch.block / max(last, 1)
        handles.append(
            model.get_submodule(hook_point.module).register_forward_hook(_dropping(chance))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dropping(chance: float) -> Any:
    # WHY the module that is passed: a running average of the model has copies of these hooks, and
    # modes of its own.
    def hook(module: nn.Module, _args: object, update: Tensor) -> Tensor:
        dropped: Tensor = drop_path(update, chance, module.training)
        return dropped

    return hook
