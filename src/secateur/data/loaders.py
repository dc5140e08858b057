"""DataLoaders of users: which can be passed over again and again, and what they give."""

from collections.abc import Iterator, Sequence

from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from secateur.data.examples import ACCEPTED, Shape
from secateur.errors import UserError

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def batch_numbers(loader: "DataLoader[object]") -> list[list[int]]:
    """The numbers of the images in each batch; UserError unless all passes are the same."""
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"a DataLoader over a {type(loader.dataset).__name__} cannot be passed over twice in "
            f"the same order; {ACCEPTED}."
        )
    if isinstance(loader.sampler, _SHUFFLING) or getattr(loader.sampler, "shuffle", False):
        raise UserError("the DataLoader shuffles, so no two passes agree; give shuffle=False.")
    if loader.batch_sampler is None:
        raise UserError("the DataLoader does not batch; give it a batch_size.")
    return [list(numbers) for numbers in loader.batch_sampler]


def collated(loader: "DataLoader[object]", number: int) -> object:
    """One image of the loader, as a batch; UserError where it cannot be batched."""
    item = loader.dataset[number]
    try:
        return loader.collate_fn([item])
    except TypeError as error:
        inner = item[0] if isinstance(item, list | tuple) and item else item
        reason = str(error).splitlines()[0]
        raise UserError(
            f"a {type(inner).__name__} of {type(loader.dataset).__name__} cannot be batched "
            f"({reason[:200]}); {ACCEPTED}."
        ) from error


def images_alone(items: Sequence[object]) -> object:
    """The images of a batch without their targets, which may not be of one size."""
    return default_collate([item[0] if isinstance(item, list | tuple) else item for item in items])


def batches_of(loader: "DataLoader[object]", shape: Shape) -> Iterator[object]:
    """What a loader gives; UserError for images that are not of the one `shape`."""
    try:
        yield from loader
    except RuntimeError as error:
        if "equal size" not in str(error) and "resize storage" not in str(error):
            raise
        raise UserError(
            f"images must be of one size, but not all are {list(shape)} as the first is; resize "
            "all to one size."
        ) from error


def every_batch(loader: "DataLoader[object]", first: int, step: int) -> "DataLoader[object]":
    """A loader of every `step`-th batch from number `first` on."""
    some: DataLoader[object] = DataLoader(
        loader.dataset,
        batch_sampler=batch_numbers(loader)[first::step],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )
    return some
