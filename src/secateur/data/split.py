"""Which images a fit sees and which are held out of it, and the first n of many images.

Shape suffixes: B batch, C channels, H height, W width; n images.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from secateur.data.batches import Batch, Batches, some_batches

HOLD_EVERY = 5
"""Every fifth batch, or image where there are fewer batches, is held out."""


def is_held(number: int, count: int) -> bool:
    """Whether one of `count` batches or images is held out: every fifth, or the last of fewer."""
    every = min(HOLD_EVERY, count)
    return every > 1 and number % every == every - 1


def fit_and_held(batches: Batches) -> tuple[Batches, Batches]:
    """The batches to fit to and those held out, which share no image.

    Every fifth batch is held out; with fewer than five batches, every fifth image, or the last of
    fewer images. A single image is both.
    """
    count = len(batches)
    if count >= HOLD_EVERY:
        held = some_batches(batches, lambda number: is_held(number, count))
        # WHY `every`: batches that are not asked for are not decoded.
        held = replace(held, _start=partial(batches.every, HOLD_EVERY - 1, HOLD_EVERY))
        return some_batches(batches, lambda number: not is_held(number, count)), held
    if batches.images < 2:
        return batches, batches
    return _by_image(batches, held=False), _by_image(batches, held=True)


def _by_image(batches: Batches, *, held: bool) -> Batches:
    """The images that are held out, or the others."""
    count = batches.images

    def start() -> Iterator[Batch]:
        first = 0
        for batch in batches:
            numbers = range(first, first + len(batch.images_BCHW))
            rows = [n - first for n in numbers if is_held(n, count) is held]
            first = numbers.stop
            if rows:
                yield Batch(
                    _rows(batch.images_BCHW, rows),
                    None if batch.labels_B is None else _rows(batch.labels_B, rows),
                )

    images = sum(is_held(number, count) is held for number in range(count))
    return replace(batches, images=images, _start=start, _every=None)


def _rows(tensor: Tensor, rows: list[int]) -> Tensor:
    return tensor.index_select(0, torch.tensor(rows, device=tensor.device))


def first_batches(batches: Batches, images: int) -> Batches:
    """The first whole batches with about this many images, at least one."""
    if batches.images <= images:
        return batches
    size = -(-batches.images // len(batches))
    count = max(1, images // size)
    return some_batches(batches, lambda number: number < count)


def first_images(batches: Batches, images: int, at_once: int | None = None) -> Batches:
    """The first images, at most `at_once` of them in a batch; no more are read."""
    count = min(images, batches.images)

    def start() -> Iterator[Batch]:
        left = images
        for batch in batches:
            here = min(left, len(batch.images_BCHW))
            step = at_once or max(1, here)
            for first in range(0, here, step):
                part = slice(first, min(first + step, here))
                labels_B = None if batch.labels_B is None else batch.labels_B[part]
                yield Batch(batch.images_BCHW[part], labels_B)
            left -= here
            if left == 0:
                return

    size = at_once or -(-batches.images // max(1, len(batches)))
    return replace(batches, images=count, _count=-(-count // size), _start=start, _every=None)


def all_images(batches: Batches) -> Tensor:
    """The images of all batches in one tensor (n, C, H, W)."""
    return torch.cat([batch.images_BCHW for batch in batches])


def keep_evenly(batches: Batches, count: int) -> tuple[Batches, list[Tensor]]:
    """The same batches, which leave `count` images, evenly from all over, in a list on the way.

    Where that leaves at least as many, the images kept are taken out of the batches, so that they
    are held out of every fit to these.
    """
    kept: list[Tensor] = []
    total, apart = len(batches), batches.images >= 2 * count

    def start() -> Iterator[Batch]:
        kept.clear()
        for k, batch in enumerate(batches):
            share = (k + 1) * count // total - k * count // total
            kept.append(batch.images_BCHW[:share].clone())
            labels, rest = batch.labels_B, batch.images_BCHW[share:]
            if not apart:
                yield batch
            elif len(rest):
                yield Batch(rest, None if labels is None else labels[share:])

    images = batches.images - count if apart else batches.images
    return replace(batches, images=images, _start=start, _every=None), kept
