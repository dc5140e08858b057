"""Batches of images that can be passed over again and again, always in the same order.

Shape suffixes: B batch, C channels, H height, W width; n images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeGuard, cast

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from secateur.errors import UserError

_Device = torch.device | str | None
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_ACCEPTED = (
    "give a tensor [n, C, H, W], a Dataset of image tensors or (image, label) pairs, "
    "a DataLoader that does not shuffle, or a list of tensors"
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Images [B, C, H, W] and their labels [B] (int64), None without labels."""

    images_BCHW: Tensor
    labels_B: Tensor | None


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches to iterate over any number of times; `len` counts batches, `images` images."""

    images: int
    labelled: bool
    _count: int
    _start: Callable[[], Iterator[Batch]]
    _every: Callable[[int, int], Iterator[Batch]] | None = None

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
    return Batches(images=images, labelled=batches.labelled, _count=len(chosen), _start=start)


def as_batches(
    images: object,
    batch_size: int = 32,
    workers: int = 0,
    device: _Device = None,
) -> Batches:
    """Turn `images` into batches on `device` (where they are, if None), in their own order.

    `images` is a tensor [n, C, H, W], alone or in a tuple with its labels [n]; a map-style
    Dataset that gives tensors [C, H, W] or (tensor, label); a DataLoader that does not shuffle; a
    list of images [C, H, W] or of batches [B, C, H, W], each alone or in a tuple with its labels;
    or what an earlier call returned. Lists of batches and loaders keep their batch sizes. A label
    below 0 means none.

    Raises UserError for anything else, for iterators, which cannot be passed over twice, and for
    no images at all.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, not {batch_size}.")
    if isinstance(images, Batches):
        if device is None:
            return images
        moved = partial(_move_every, images, device)
        return replace(images, _start=partial(_move, images, device), _every=moved)
    if isinstance(images, IterableDataset | Iterator):
        raise UserError(f"a {type(images).__name__} cannot be passed over twice; {_ACCEPTED}.")
    if isinstance(images, DataLoader):
        return _from_loader(images, device)
    if isinstance(images, Tensor) or _is_whole_set(images):
        return _from_list(_slices(images, batch_size), batch_size, device)
    if isinstance(images, list | tuple):
        return _from_list(images, batch_size, device)
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        dataset = cast("Dataset[object]", images)
        _refuse_none(len(images))
        return _from_loader(DataLoader(dataset, batch_size, num_workers=workers), device)
    raise UserError(f"cannot read images from a {type(images).__name__}; {_ACCEPTED}.")


def _is_whole_set(images: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether `images` is one pair of images [n, C, H, W] and labels [n]."""
    return (
        isinstance(images, tuple)
        and len(images) == 2
        and all(isinstance(part, Tensor) for part in images)
        and (images[0].ndim, images[1].ndim) == (4, 1)
    )


def _slices(images: Tensor | tuple[Tensor, Tensor], batch_size: int) -> Sequence[object]:
    """A whole set cut into batches; the slices are views."""
    if not isinstance(images, Tensor):
        return list(zip(*(torch.split(part, batch_size) for part in images), strict=True))
    if images.ndim != 4:
        raise UserError(f"images have shape {list(images.shape)}; give them as [n, C, H, W].")
    return torch.split(images, batch_size) if len(images) else []


def _from_list(items: Sequence[object], batch_size: int, device: _Device) -> Batches:
    """Batches as they are, or single images stacked."""
    _refuse_none(len(items))
    pairs = [_split(item) for item in items]
    number = 0
    for images, _ in pairs:
        refuse_not_finite_images(images, number)
        number += 1 if images.ndim == 3 else len(images)
    if len({(images.ndim, labels is None) for images, labels in pairs}) > 1:
        raise UserError(
            "a list of images must not mix single images with batches, nor labelled with "
            f"unlabelled ones; {_ACCEPTED}."
        )
    if pairs[0][0].ndim == 3:
        chunks = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    else:
        chunks = [[item] for item in items]
    labelled = _labelled(pairs[0][1])
    return Batches(
        images=sum(1 if images.ndim == 3 else len(images) for images, _ in pairs),
        labelled=labelled,
        _count=len(chunks),
        _start=partial(_from_chunks, chunks, labelled, device),
        _every=lambda first, step: _from_chunks(chunks[first::step], labelled, device),
    )


def _from_chunks(
    chunks: Sequence[Sequence[object]], labelled: bool, device: _Device
) -> Iterator[Batch]:
    for chunk in chunks:
        item = chunk[0]
        single = _split(item)[0].ndim == 3
        yield _batch(default_collate(list(chunk)) if single else item, labelled, device)


def _from_loader(loader: "DataLoader[object]", device: _Device) -> Batches:
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"a DataLoader over a {type(loader.dataset).__name__} cannot be passed over twice in "
            f"the same order; {_ACCEPTED}."
        )
    if isinstance(loader.sampler, _SHUFFLING) or getattr(loader.sampler, "shuffle", False):
        raise UserError("the DataLoader shuffles, so no two passes agree; give shuffle=False.")
    if loader.batch_sampler is None:
        raise UserError("the DataLoader does not batch; give it a batch_size.")
    sizes = [len(numbers) for numbers in loader.batch_sampler]
    _refuse_none(len(sizes))
    first = next(iter(loader.batch_sampler))[0]
    # One image tells whether there are labels, without starting the loader's workers.
    labelled = _labelled(_split(loader.collate_fn([loader.dataset[first]]))[1])
    return Batches(
        images=sum(sizes),
        labelled=labelled,
        _count=len(sizes),
        _start=partial(_from_each, loader, labelled, device),
        _every=partial(_from_some, loader, labelled, device),
    )


def _from_each(items: Iterable[object], labelled: bool, device: _Device) -> Iterator[Batch]:
    return (_batch(item, labelled, device) for item in items)


def _from_some(
    loader: "DataLoader[object]", labelled: bool, device: _Device, first: int, step: int
) -> Iterator[Batch]:
    """Some batches of a loader, read by a loader for these alone."""
    assert loader.batch_sampler is not None
    some: DataLoader[object] = DataLoader(
        loader.dataset,
        batch_sampler=list(loader.batch_sampler)[first::step],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )
    return _from_each(some, labelled, device)


def _move_every(batches: Batches, device: _Device, first: int, step: int) -> Iterator[Batch]:
    return (_moved(batch, device) for batch in batches.every(first, step))


def _move(batches: Batches, device: _Device) -> Iterator[Batch]:
    return (_moved(batch, device) for batch in batches)


def _moved(batch: Batch, device: _Device) -> Batch:
    labels_B = None if batch.labels_B is None else batch.labels_B.to(device)
    return Batch(batch.images_BCHW.to(device), labels_B)


def _split(item: object) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a batch or of a single image; raise UserError if it is neither."""
    images, labels = item, None
    if isinstance(item, list | tuple) and len(item) in (1, 2):
        images, labels = item[0], item[1] if len(item) == 2 else None
    if not isinstance(images, Tensor) or images.ndim not in (3, 4):
        kind = (
            f"tensor {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise UserError(f"found a {kind} where an image or a batch was expected; {_ACCEPTED}.")
    if not images.is_floating_point():
        raise UserError(
            f"images are {images.dtype}; scale and normalise them to floating point, as "
            "Preprocessing.transform() does."
        )
    if labels is None:
        return images, None
    labels_B = torch.as_tensor(labels)
    if labels_B.is_floating_point() or labels_B.shape != images.shape[:-3]:
        raise UserError(
            f"labels are {labels_B.dtype} {list(labels_B.shape)} for images "
            f"{list(images.shape)}; give one class number per image."
        )
    return images, labels_B


def _labelled(labels: Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).all())


def _batch(item: object, labelled: bool, device: _Device) -> Batch:
    images_BCHW, labels_B = _split(item)
    refuse_not_finite_images(images_BCHW)
    if labelled and not _labelled(labels_B):
        raise UserError("only some images have a label; give all a label or none.")
    return Batch(
        images_BCHW.to(device),
        labels_B.to(device, torch.int64) if labelled and labels_B is not None else None,
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


def _refuse_none(count: int) -> None:
    if count == 0:
        raise UserError(f"there are no images; {_ACCEPTED}.")
