"""A new classifier for a model that was saved: the body stays, the head begins afresh."""

import warnings

import torch
from torch import nn

from secateur.errors import Advice, UserError
from secateur.models.caches import forget_cached_
from secateur.models.family import read


def give_head_(model: nn.Module, num_classes: int, seed: int = 0) -> bool:
    """Give `model` an untrained head for other classes, whose weights follow from the seed.

    A head of as many classes stays as it is; 0 takes the head off. Advice says that it must be
    trained. Returns whether the head was changed. UserError for a negative number, and for models
    whose library has no way to change their head.
    """
    if num_classes < 0:
        raise UserError(f"a head cannot have {num_classes} classes; give 0 or more.")
    if read(model).num_classes == num_classes:
        return False
    reset = getattr(model, "reset_classifier", None)
    like = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if callable(reset):
            reset(num_classes)
        else:
            _replace_(model, num_classes)
    model.to(like.device, like.dtype).eval()
    forget_cached_(model)
    if num_classes:
        warnings.warn(
            f"the head for {num_classes} classes is new and untrained; train it first",
            Advice,
            stacklevel=4,
        )
    return True


def _replace_(model: nn.Module, num_classes: int) -> None:
    """Put a linear layer in the place of the last one that has as many outputs as classes."""
    classes = read(model).num_classes
    heads = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes
    ]
    if not heads or not num_classes:
        raise UserError(
            f"the head of a {type(model).__name__} cannot be changed here; change it by its own "
            "library, and prune again."
        )
    path, module = heads[-1]
    model.set_submodule(path, nn.Linear(module.in_features, num_classes, module.bias is not None))
    if (config := model.__dict__.get("config")) is not None:
        config.num_labels = num_classes
