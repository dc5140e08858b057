"""One image, or one batch of them, as users' lists, data sets and loaders give it, checked.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from secateur.errors import UserError

Shape = tuple[int, int, int]
"""Channels, height and width of every image."""

ACCEPTED = (
    "give a tensor or array [n, C, H, W], a Dataset of image tensors or (image, label) pairs, "
    "a DataLoader that does not shuffle, or a list of tensors"
)


def split(item: object, *, any_targets: bool = False) -> tuple[Tensor, Tensor | None]:
    """Images [C, H, W] or [B, C, H, W] and their class numbers, [] or [B], None without.

    With `any_targets`, those that are not one class number per image, such as several labels,
    numbers to regress on, boxes or masks, are passed over. UserError for them otherwise, and for
    whatever is no image.
    """
    images, targets = _parts(as_tensors(item), any_targets)
    if isinstance(images, list | tuple) and images and all(map(_is_image, images)):
        refuse_mixed_shapes([shape_of(image) for image in images])
        images = torch.stack(list(images))
    if not isinstance(images, Tensor) or images.ndim not in (3, 4):
        raise UserError(
            f"found a {_kind(images)} where an image or a batch was expected; {ACCEPTED}."
        )
    if not images.is_floating_point():
        raise UserError(
            f"images are {images.dtype}; scale and normalise them to floating point, as "
            "Preprocessing.transform() does."
        )
    if targets is None:
        return images, None
    numbers = class_numbers(targets, images.shape[:-3])
    if numbers is None and not any_targets:
        raise UserError(
            f"labels are {_targets(targets)} for images {list(images.shape)}; give one class "
            "number per image."
        )
    return images, numbers


def as_tensors(images: object) -> object:
    """Arrays of numpy, alone or in a pair with labels, as tensors; anything else as it is."""
    if isinstance(images, tuple) and len(images) == 2:
        return tuple(map(as_tensors, images)) if isinstance(images[0], np.ndarray) else images
    if not isinstance(images, np.ndarray):
        return images
    try:
        return torch.from_numpy(np.ascontiguousarray(images))
    except TypeError as error:
        raise UserError(
            f"cannot read images from an array of {images.dtype}; {ACCEPTED}."
        ) from error


def class_numbers(targets: object, shape: Sequence[int]) -> Tensor | None:
    """The targets as a tensor of this shape, one class number per image; None if they are not."""
    try:
        numbers = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    plain = not (numbers.is_floating_point() or numbers.is_complex())
    return numbers if plain and numbers.shape == tuple(shape) else None


def labelled(labels: Tensor | None) -> bool:
    """Whether there are class numbers, and none that means "not known" (below 0)."""
    return labels is not None and bool((labels >= 0).all())


def shape_of(images: Tensor) -> Shape:
    """Channels, height and width of an image or of each in a batch."""
    return cast("Shape", tuple(images.shape[-3:]))


def refuse_mixed_shapes(shapes: Sequence[Shape]) -> None:
    """UserError when images differ in channels, height or width."""
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise UserError(
                f"images must be of one size, but the first is {list(shapes[0])} and number "
                f"{number}, counted from 0, is {list(shape)}; resize all to one size."
            )


def refuse_not_finite_images(images: Tensor, first: int | None = None) -> None:
    """UserError for an image, or a batch from number `first` on, with NaN or infinite pixels."""
    fine = images.isfinite().flatten(-3).all(-1)
    if not bool(fine.all()):
        number = int((~fine).flatten().nonzero()[0])
        which = f"number {number} of a batch" if first is None else f"number {first + number}"
        raise UserError(
            f"image {which}, counted from 0, has NaN or infinite pixels; leave it out, or mend how "
            "the images are read and normalised."
        )


def _parts(item: object, any_targets: bool) -> tuple[object, object]:
    """What is in the place of the images, and of the targets; None without."""
    if not isinstance(item, list | tuple) or not item:
        return item, None
    if len(item) == 1:
        return item[0], None
    first, second = item[0], item[1]
    # WHY: a list of single images is a batch, not one image and its mask.
    several = isinstance(item, list) and _is_image(first) and _is_image(second)
    if several and (len(item) > 2 or shape_of(first)[0] == shape_of(second)[0]):
        return item, None
    if len(item) == 2:
        return first, second
    return (first, item[1:]) if any_targets else (item, None)


def _is_image(part: object) -> bool:
    return isinstance(part, Tensor) and part.ndim == 3


def _kind(images: object) -> str:
    if isinstance(images, Tensor):
        return f"tensor {list(images.shape)}"
    if isinstance(images, list | tuple):
        return f"{type(images).__name__} of {len(images)}"
    return type(images).__name__


def _targets(targets: object) -> str:
    """Targets that are no class numbers, in words."""
    try:
        numbers = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        inner = targets[0] if isinstance(targets, list | tuple) and targets else None
        kind = f"{type(targets).__name__}"
        return f"a {kind}" if inner is None else f"a {kind} of {type(inner).__name__}"
    return f"{numbers.dtype} {list(numbers.shape)}"
