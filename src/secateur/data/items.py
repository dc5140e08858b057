"""Images to train on: what users give, as something that can be read by number.

Shape suffixes: n images, B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from secateur.data.batches import Batches, is_whole_set
from secateur.data.examples import (
    Shape,
    as_tensors,
    labelled,
    refuse_mixed_shapes,
    refuse_not_finite_images,
    shape_of,
    split,
)
from secateur.data.images import ImageSet
from secateur.errors import UserError

_OF_ALL = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
Collate = Callable[[list[Any]], Any]


class ByNumber(Dataset[Any]):
    """Some images of a data set, as its loader would collate them, or without their targets.

    UserError, naming the image, where its pixels are not finite.
    """

    def __init__(
        self,
        dataset: Any,
        numbers: Sequence[int],
        collate: Collate | None = None,
        *,
        any_targets: bool = False,
        alone: bool = False,
    ) -> None:
        self.dataset = dataset
        self.numbers = numbers
        self.collate = collate
        self.any_targets = any_targets
        self.alone = alone

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        number = self.numbers[index]
        item = self.dataset[number]
        if self.collate is not None:
            images_BCHW, labels_B = split(self.collate([item]), any_targets=self.any_targets)
            item = images_BCHW[0] if labels_B is None else (images_BCHW[0], int(labels_B[0]))
        image = as_tensors(item[0] if isinstance(item, list | tuple) and item else item)
        if isinstance(image, Tensor):
            refuse_not_finite_images(image, number)
        return item[0] if self.alone and isinstance(item, list | tuple) else item


def as_items(images: object, *, labels_needed: bool) -> object:
    """A tensor [n, C, H, W], a pair of one with its labels [n], an `ImageSet` or another Dataset.

    `images` is one of these, a DataLoader, of which the images are taken but not the order, or a
    list of images or batches, each alone or in a tuple with its labels. Where labels are not
    `labels_needed`, targets that are not one class number per image are left out. UserError for
    anything else, for targets of another kind that are needed, and for images of several sizes.
    """
    images = as_tensors(images)
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, DataLoader):
        return _of_loader(images, labels_needed)
    if isinstance(images, Batches | IterableDataset | Iterator | str):
        raise UserError(f"cannot train on a {type(images).__name__}; {_ACCEPTED}.")
    if isinstance(images, Tensor) or is_whole_set(images):
        whole = images if isinstance(images, Tensor) else images[0]
        if whole.ndim != 4:
            raise UserError(
                f"cannot train on a tensor {list(whole.shape)}; give images as [n, C, H, W]."
            )
        return _whole(*split(images, any_targets=not labels_needed))
    if isinstance(images, list | tuple):
        return _of_list(images, labels_needed)
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return _of_dataset(images, range(len(images)), None, labels_needed)
    raise UserError(f"cannot train on a {type(images).__name__}; {_ACCEPTED}.")


def has_labels(images: object) -> bool:
    """Whether what `as_items` gave has labels; of a Dataset, whether its first image has."""
    if isinstance(images, ImageSet):
        return images.labelled
    if isinstance(images, tuple):
        return labelled(images[1])
    return not isinstance(images, Tensor) and labelled(_example(images, 0)[1])


def count_of(images: object) -> int:
    """How many images `as_items` gave."""
    return len(images[0] if isinstance(images, tuple) else cast("Sequence[object]", images))


def shape_of_items(images: object) -> Shape:
    """Channels, height and width of the images that `as_items` gave."""
    if isinstance(images, ImageSet):
        return images.preprocessing.input_size
    if isinstance(images, tuple | Tensor):
        return shape_of(images[0])
    return shape_of(_example(images, 0)[0])


_ACCEPTED = (
    "give a path, a tensor or array [n, C, H, W], alone or in a tuple with its labels, a map-style "
    "Dataset, a DataLoader of one, or a list of images or batches"
)


def _whole(images_nCHW: Tensor, labels_n: Tensor | None) -> object:
    if not len(images_nCHW):
        raise UserError(f"there are no images to train on; {_ACCEPTED}.")
    refuse_not_finite_images(images_nCHW, 0)
    return images_nCHW if labels_n is None else (images_nCHW, labels_n)


def _of_list(items: Sequence[object], labels_needed: bool) -> object:
    """All images of a list in one tensor."""
    try:
        pairs = [split(item, any_targets=not labels_needed) for item in items]
    except UserError as error:
        raise UserError(f"cannot train on a {type(items).__name__}: {error}") from error
    if not pairs:
        raise UserError(f"there are no images to train on; {_ACCEPTED}.")
    refuse_mixed_shapes([shape_of(images) for images, _ in pairs])
    known = [labels.reshape(-1) for _, labels in pairs if labels is not None]
    if known and len(known) < len(pairs):
        raise UserError("only some images have a label; give all a label or none.")
    images_nCHW = torch.cat([images if images.ndim == 4 else images[None] for images, _ in pairs])
    return _whole(images_nCHW, torch.cat(known) if known else None)


def _of_loader(loader: "DataLoader[Any]", labels_needed: bool) -> object:
    """The images that a loader gives in one pass, each once."""
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"cannot train on a DataLoader over a {type(loader.dataset).__name__}; {_ACCEPTED}."
        )
    if loader.batch_sampler is None:
        raise UserError("the DataLoader does not batch; give it a batch_size.")
    numbers: Sequence[int]
    if type(loader.batch_sampler) is not BatchSampler:
        numbers = sorted({number for batch in loader.batch_sampler for number in batch})
    elif isinstance(loader.sampler, _OF_ALL):
        numbers = range(len(loader.dataset))  # type: ignore[arg-type]
    elif isinstance(loader.sampler, SubsetRandomSampler):
        numbers = sorted(loader.sampler.indices)
    else:
        numbers = sorted(set(loader.sampler))
    plain = loader.collate_fn is default_collate
    collate = None if plain else loader.collate_fn
    return _of_dataset(loader.dataset, numbers, collate, labels_needed)


def _of_dataset(
    dataset: Any, numbers: Sequence[int], collate: Collate | None, labels_needed: bool
) -> object:
    """A data set whose first and last image can be trained on."""
    if not len(numbers):
        raise UserError(f"there are no images to train on; {_ACCEPTED}.")
    chosen = partial(ByNumber, dataset, numbers, collate, any_targets=not labels_needed)
    items: Dataset[Any] = chosen()
    image, labels = _example(items, 0, any_targets=not labels_needed)
    last, _ = _example(items, len(numbers) - 1, any_targets=not labels_needed)
    refuse_mixed_shapes([shape_of(image), shape_of(last)])
    if labels is None:
        return chosen(alone=True)
    return items


def _example(items: Any, index: int, *, any_targets: bool = True) -> tuple[Tensor, Tensor | None]:
    """One image and its label, checked."""
    item = items[index]
    parts = tuple(item) if isinstance(item, list | tuple) and item else (item,)
    try:
        image = default_collate([parts[0]])[0]
    except TypeError:
        image = parts[0]
    return split((image, *parts[1:]), any_targets=any_targets)
