"""Which kind of targets come with images, looked up in the first item alone."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from secateur.data.images import ImageSet


def multi_hot(images: object) -> bool:
    """Whether every image has a row of zeros and ones beside it, one number per label.

    `images` are those of `secateur.data.batches.as_batches`; anything else has none.
    """
    target = _first_target(images)
    if target is None:
        return False
    return target.ndim >= 1 and target.shape[-1] > 1 and bool(((target == 0) | (target == 1)).all())


def _first_target(images: object) -> Tensor | None:
    """The targets of the first image, (C,), or of a batch (B, C); None where there are none."""
    if isinstance(images, DataLoader):
        if isinstance(images.dataset, IterableDataset):
            return None
        return _target(images.dataset[0], single=True)
    if isinstance(images, tuple) and len(images) == 2 and isinstance(images[0], Tensor):
        return _target(images, single=images[0].ndim == 3)
    if isinstance(images, Tensor | str | ImageSet) or not hasattr(images, "__getitem__"):
        return None
    try:
        item = images[0]
    except (IndexError, KeyError, TypeError):
        return None
    single = not (isinstance(item, tuple | list) and _ndim(item[:1]) == 4)
    return _target(item, single=single)


def _ndim(items: object) -> int:
    first = items[0] if isinstance(items, tuple | list) and items else None
    return first.ndim if isinstance(first, Tensor) else 0


def _target(item: object, *, single: bool) -> Tensor | None:
    """The second of two, where it has one row per image; class numbers are no rows."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        return None
    try:
        target = torch.as_tensor(item[1])
    except (TypeError, ValueError, RuntimeError):
        return None
    return target if target.ndim == (1 if single else 2) else None
