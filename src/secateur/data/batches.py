"""Batches of images that can be passed over again and again, always in the same order.

Shape suffixes: B batch, C channels, H height, W width; n images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeGuard, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from secateur.data.examples import (
    ACCEPTED,
    Shape,
    as_tensors,
    labelled,
    refuse_mixed_shapes,
    refuse_not_finite_images,
    shape_of,
    split,
)
from secateur.data.images import ImageSet
from secateur.data.loaders import (
    batch_numbers,
    batches_of,
    collated,
    every_batch,
    images_alone,
)
from secateur.errors import UserError

_Device = torch.device | str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Images [B, C, H, W] and their labels [B] (int64), None without labels."""

    images_BCHW: Tensor
    labels_B: Tensor | None


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches to iterate over any number of times; `len` counts batches, `images` images.

    `shape` is that of every image [C, H, W], where it is known beforehand.
    """

    images: int
    labelled: bool
    _count: int
    _start: Callable[[], Iterator[Batch]]
    _every: Callable[[int, int], Iterator[Batch]] | None = None
    shape: Shape | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return self._start()

    def every(self, first: int, step: int) -> Iterator[Batch]:
        """Every `step`-th batch from number `first` on; the others are not even decoded, where the
        images come from files."""
        if step == 1:
            return islice(iter(self), first, None)
        if self._every is None:
            return islice(iter(self), first, None, step)
        return self._every(first, step)


def some_batches(batches: Batches, keep: Callable[[int], bool]) -> Batches:
    """The batches whose numbers `keep` accepts, in their order.

    All but the last are taken to be of one size, so `images` may be off where they are not.
    """
    size = -(-batches.images // max(1, len(batches)))
    chosen = [number for number in range(len(batches)) if keep(number)]

    def start() -> Iterator[Batch]:
        return (batch for number, batch in enumerate(batches) if keep(number))

    images = sum(min(size, batches.images - number * size) for number in chosen)
    return replace(batches, images=images, _count=len(chosen), _start=start, _every=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """How what a list or loader gives becomes a batch."""

    labelled: bool
    any_targets: bool
    shape: Shape
    device: _Device
    dtype: torch.dtype | None

    def batch(self, item: object) -> Batch:
        """A batch as it is, checked and moved."""
        return self.moved(*split(item, any_targets=self.any_targets))

    def stacked(self, items: Sequence[object]) -> Batch:
        """A batch of single images."""
        pairs = [split(item, any_targets=self.any_targets) for item in items]
        known = [label for _, label in pairs if label is not None]
        labels_B = torch.stack(known) if len(known) == len(pairs) else None
        return self.moved(torch.stack([image for image, _ in pairs]), labels_B)

    def moved(self, images_BCHW: Tensor, labels_B: Tensor | None) -> Batch:
        """Images of one shape and finite, with labels where the first had one."""
        if images_BCHW.ndim != 4:
            images_BCHW = images_BCHW[None]
            labels_B = None if labels_B is None else labels_B[None]
        refuse_mixed_shapes([self.shape, shape_of(images_BCHW)])
        refuse_not_finite_images(images_BCHW)
        if self.labelled and not labelled(labels_B):
            raise UserError("only some images have a label; give all a label or none.")
        return Batch(
            images_BCHW.to(device=self.device, dtype=self.dtype),
            labels_B.to(self.device, torch.int64)
            if self.labelled and labels_B is not None
            else None,
        )


def as_batches(
    images: object,
    batch_size: int = 32,
    workers: int = 0,
    device: _Device = None,
    *,
    dtype: torch.dtype | None = None,
    any_targets: bool = False,
) -> Batches:
    """Turn `images` into batches on `device` (where they are, if None), in their own order.

    `images` is a tensor or array [n, C, H, W], alone or in a tuple with its labels [n]; a map-style
    Dataset that gives tensors [C, H, W] or (tensor, label); a DataLoader that does not shuffle; a
    list of images [C, H, W] or of batches [B, C, H, W], each alone or in a tuple with its labels;
    or what an earlier call returned. Lists of batches and loaders keep their batch sizes. A label
    below 0 means none. With `any_targets`, for work that needs no labels, images may come with
    targets of any other kind, which are passed over. Images become of type `dtype`.

    Raises UserError for anything else, for iterators, which cannot be passed over twice, for
    images of several sizes, and for no images at all.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}.")
    images = as_tensors(images)
    if isinstance(images, Batches):
        if device is None and dtype is None:
            return images
        moved = partial(_move_every, images, device, dtype)
        return replace(images, _start=partial(_move, images, device, dtype), _every=moved)
    if isinstance(images, IterableDataset | Iterator):
        raise UserError(f"a {type(images).__name__} cannot be passed over twice; {ACCEPTED}.")
    making = partial(_Making, any_targets=any_targets, device=device, dtype=dtype)
    if isinstance(images, DataLoader):
        return _from_loader(images, making, any_targets)
    if isinstance(images, Tensor) or is_whole_set(images):
        return _from_list(_slices(images, batch_size), batch_size, making, any_targets)
    if isinstance(images, list | tuple):
        return _from_list(images, batch_size, making, any_targets)
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        dataset = cast("Dataset[object]", images)
        _refuse_none(len(images))
        loader = DataLoader(dataset, batch_size, num_workers=workers)
        if any_targets and split(collated(loader, 0), any_targets=True)[1] is None:
            # WHY: targets such as boxes cannot be collated.
            loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=images_alone)
        return _from_loader(loader, making, any_targets)
    raise UserError(f"cannot read images from a {type(images).__name__}; {ACCEPTED}.")


def is_whole_set(images: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether `images` is one pair of images [n, C, H, W] and targets [n, ...]."""
    if not (
        isinstance(images, tuple)
        and len(images) == 2
        and all(isinstance(part, Tensor) for part in images)
        and images[0].ndim == 4
        and images[1].ndim not in (0, 4)
    ):
        return False
    if len(images[0]) != len(images[1]):
        raise UserError(
            f"there are {len(images[0])} images but {len(images[1])} labels; give one label per "
            "image."
        )
    return True


def _slices(images: Tensor | tuple[Tensor, Tensor], batch_size: int) -> Sequence[object]:
    """A whole set cut into batches; the slices are views."""
    if not isinstance(images, Tensor):
        return list(zip(*(torch.split(part, batch_size) for part in images), strict=True))
    if images.ndim != 4:
        raise UserError(f"images have shape {list(images.shape)}; give them as [n, C, H, W].")
    return torch.split(images, batch_size) if len(images) else []


def _from_list(
    items: Sequence[object], batch_size: int, making: Callable[..., _Making], any_targets: bool
) -> Batches:
    """Batches as they are, or single images stacked."""
    _refuse_none(len(items))
    pairs = [split(item, any_targets=any_targets) for item in items]
    number = 0
    for images, _ in pairs:
        refuse_not_finite_images(images, number)
        number += 1 if images.ndim == 3 else len(images)
    if len({(images.ndim, labels is None) for images, labels in pairs}) > 1:
        raise UserError(
            "a list of images must not mix single images with batches, nor labelled with "
            f"unlabelled ones; {ACCEPTED}."
        )
    refuse_mixed_shapes([shape_of(images) for images, _ in pairs])
    make = making(labelled=labelled(pairs[0][1]), shape=shape_of(pairs[0][0]))
    single = pairs[0][0].ndim == 3
    size = batch_size if single else 1
    chunks = [items[i : i + size] for i in range(0, len(items), size)]

    def start(some: Sequence[Sequence[object]]) -> Iterator[Batch]:
        return (make.stacked(chunk) if single else make.batch(chunk[0]) for chunk in some)

    return Batches(
        images=number,
        labelled=make.labelled,
        _count=len(chunks),
        _start=partial(start, chunks),
        _every=lambda first, step: start(chunks[first::step]),
        shape=make.shape,
    )


def _from_loader(
    loader: "DataLoader[object]", making: Callable[..., _Making], any_targets: bool
) -> Batches:
    numbers = batch_numbers(loader)
    _refuse_none(len(numbers))
    # One image tells whether there are labels, without starting the loader's workers.
    images, labels = split(collated(loader, numbers[0][0]), any_targets=any_targets)
    if not isinstance(loader.dataset, ImageSet):
        last, _ = split(collated(loader, numbers[-1][-1]), any_targets=any_targets)
        refuse_mixed_shapes([shape_of(images), shape_of(last)])
    make = making(labelled=labelled(labels), shape=shape_of(images))
    return Batches(
        images=sum(map(len, numbers)),
        labelled=make.labelled,
        _count=len(numbers),
        _start=lambda: map(make.batch, batches_of(loader, make.shape)),
        _every=lambda first, step: map(
            make.batch, batches_of(every_batch(loader, first, step), make.shape)
        ),
        shape=make.shape,
    )


def _move_every(
    batches: Batches, device: _Device, dtype: torch.dtype | None, first: int, step: int
) -> Iterator[Batch]:
    return (_moved(batch, device, dtype) for batch in batches.every(first, step))


def _move(batches: Batches, device: _Device, dtype: torch.dtype | None) -> Iterator[Batch]:
    return (_moved(batch, device, dtype) for batch in batches)


def _moved(batch: Batch, device: _Device, dtype: torch.dtype | None) -> Batch:
    labels_B = None if batch.labels_B is None else batch.labels_B.to(device=device)
    return Batch(batch.images_BCHW.to(device=device, dtype=dtype), labels_B)


def _refuse_none(count: int) -> None:
    if count == 0:
        raise UserError(f"there are no images; {ACCEPTED}.")
