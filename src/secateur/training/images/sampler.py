"""Training images as an endless stream in which every position has its image and its randomness.

What position p holds depends on the seed and p alone, not on what was drawn before, on the number
of processes or of loader workers. So a run goes on at any step without remembering anything.
Legend: B batch, C channels, H height, W width, n images.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
import torch
from timm.data import Mixup
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from secateur.data.images import ImageSet
from secateur.data.items import as_items
from secateur.data.preprocessing import Preprocessing, Transform
from secateur.training.images.views import KeptViews, kept_views
from secateur.training.lesson import Lesson, Moment
from secateur.training.settings import AugmentSettings, TrainSettings

MEMORY = 1_000_000_000
"""Bytes of encoded images that are kept, so that files are read once."""
ENDLESS = 2**40
"""More batches than any run takes, for budgets in time."""


class Items(Protocol):
    """Images by number, alone or with a label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def items_of(images: object, augment: AugmentSettings) -> Items:
    """Images to train on: those of files augmented, tensors and data sets as they are.

    UserError for anything that cannot be read in any order.
    """
    if isinstance(images, ImageSet):
        return replace(in_memory(images), transform=training_transform(images, augment))
    found = as_items(images, labels_needed=False)
    if isinstance(found, Tensor):
        return TensorDataset(found)
    if isinstance(found, tuple):
        return TensorDataset(*found)
    return cast(Items, found)


def training_transform(images: ImageSet, augment: AugmentSettings) -> Transform:
    """timm's training transform at the size and normalisation of the model."""
    it: Preprocessing = images.preprocessing
    transform: Transform = create_transform(
        input_size=it.input_size,
        is_training=True,
        scale=(augment.least_area, 1.0),
        hflip=0.5 if augment.flip else 0.0,
        color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=augment.auto,
        interpolation=it.interpolation,
        mean=it.mean,
        std=it.std,
        re_prob=augment.erase,
    )
    return transform


def in_memory(images: ImageSet, most_bytes: int = MEMORY) -> ImageSet:
    """The same images with their encoded files in memory, if all fit.

    Files of many images, such as parquet, are quick to read in their own order only.
    """
    kept: list[bytes] = []
    size = 0
    for index in range(len(images)):
        kept.append(images.read(index))
        size += len(kept[-1])
        if size > most_bytes:
            return images
    return replace(images, read=kept.__getitem__)


def seed_for(*numbers: int) -> int:
    """One seed from several numbers, none of which are lost to another."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """All three global generators of the CPU start from a seed, and are put back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_for(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Stream(Dataset[tuple[Tensor, int, int]]):
    """Position p is image i = order(q // n)[q % n], q = p // repeats, under the augmentation of p.

    With `views`, under the augmentation of view v of image i, where v counts the times that i was
    there before, modulo `views`. What comes is the image, its label or -1, and i * views + v, or
    -1 without `views`. With `kept`, each view is made once only.
    """

    def __init__(
        self,
        items: Items,
        seed: int,
        repeats: int = 1,
        views: int | None = None,
        kept: KeptViews | None = None,
    ) -> None:
        self.items = items
        self.seed = seed
        self.repeats = repeats
        self.views = views
        self.kept = kept

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        epoch, place = divmod(position // self.repeats, len(self.items))
        index = int(_order(len(self.items), self.seed, epoch)[place])
        noise, row = (1, position), -1
        if self.views is not None:
            seen = epoch * self.repeats + position % self.repeats
            row = index * self.views + seen % self.views
            noise = (5, row)

        def make() -> Any:
            with seeded(self.seed, *noise):
                return self.items[index]

        if self.kept is not None and isinstance(self.items, ImageSet):
            return self.kept(row, make), self.items.labels[index], row
        item = make()
        if isinstance(item, Tensor):
            return item, -1, row
        return item[0], int(item[1]) if len(item) > 1 else -1, row


@lru_cache(maxsize=4)
def _order(images: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, 0, epoch))
    return torch.randperm(images, generator=generator)


@dataclass(frozen=True, slots=True)
class Positions(Sampler[list[int]]):
    """Batches of consecutive positions of a stream, from batch number `start` up to `stop`."""

    batch_size: int
    start: int
    stop: int
    drop_last: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.start, self.stop):
            yield list(range(number * self.batch_size, (number + 1) * self.batch_size))


def loader_of(
    items: Items, settings: TrainSettings, *, start: int, steps: int | None, pin: bool
) -> "DataLoader[tuple[Tensor, int, int]]":
    """The parts of each step's batch from step `start` on, to be shared out among processes."""
    parts = settings.accumulate
    return DataLoader(
        Stream(
            items,
            settings.seed,
            settings.augment.repeats,
            settings.augment.views,
            kept_views(items, settings),
        ),
        batch_sampler=Positions(
            settings.batch_size // parts,
            start * parts,
            ENDLESS if steps is None else steps * parts,
        ),
        num_workers=settings.workers,
        pin_memory=pin,
    )


Prepare = Callable[[Sequence[Tensor], Moment, int], Lesson]


def preparer(
    settings: TrainSettings,
    classes: int,
    labelled: bool,
    process: int,
    dtype: torch.dtype | None = None,
) -> Prepare:
    """From a loader's batch, at a moment and a part of its step, to a lesson, perhaps mixed.

    Images become of type `dtype`, if given.
    """
    augment = settings.augment
    mix = None
    if augment.mixup or augment.cutmix:
        mix = Mixup(
            augment.mixup,
            augment.cutmix,
            label_smoothing=settings.label_smoothing,
            num_classes=max(classes, 1),
        )

    def prepare(batch: Sequence[Tensor], moment: Moment, part: int) -> Lesson:
        images_BCHW, labels_B, rows_B = batch
        images_BCHW = images_BCHW.to(dtype=dtype)
        if mix is None or moment.share >= augment.mix_until:
            return Lesson(
                images_BCHW=images_BCHW,
                labels_B=labels_B if labelled else None,
                rows_B=None if augment.views is None else rows_B,
            )
        with seeded(settings.seed, 2, moment.step, part, process):
            # Labels that are not used may be of other classes than the model's.
            own_B = labels_B.clamp_min(0) if labelled else torch.zeros_like(labels_B)
            mixed_BCHW, targets_BC = mix(images_BCHW, own_B)
        if not labelled:
            return Lesson(images_BCHW=mixed_BCHW)
        return Lesson(images_BCHW=mixed_BCHW, labels_B=labels_B, targets_BC=targets_BC)

    return prepare
