from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from secateur.data.batches import Batches, as_batches
from secateur.errors import UserError

X = torch.arange(5 * 3 * 2 * 2, dtype=torch.float32).reshape(5, 3, 2, 2)
Y = torch.tensor([3, 1, 4, 1, 5])


class Images(Dataset[torch.Tensor]):
    """Images without labels."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> torch.Tensor:
        return X[index]


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(X)


def sizes(batches: Batches) -> list[int]:
    return [len(batch.images_BCHW) for batch in batches]


LABELLED = {
    "pair": (X, Y),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), 2),
    "list of images": [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "list of batches": [(X[:2], Y[:2]), (X[2:4], Y[2:4]), (X[4:], Y[4:])],
}
UNLABELLED = {
    "tensor": X,
    "dataset": Images(),
    "one-tuples": TensorDataset(X),
    "loader": DataLoader(Images(), 2),
    "list of images": list(X),
    "list of batches": [X[:2], X[2:4], X[4:]],
    "negative labels": TensorDataset(X, -torch.ones(5, dtype=torch.int64)),
}


@pytest.mark.parametrize("images", LABELLED.values(), ids=LABELLED)
def test_labelled_images_come_in_order_twice(images: object) -> None:
    batches = as_batches(images, batch_size=2)
    assert (len(batches), batches.images, batches.labelled) == (3, 5, True)
    for _ in range(2):
        assert sizes(batches) == [2, 2, 1]
        assert torch.equal(torch.cat([batch.images_BCHW for batch in batches]), X)
        labels = [batch.labels_B for batch in batches]
        assert [part.dtype for part in labels if part is not None] == [torch.int64] * 3
        assert torch.equal(torch.cat([part for part in labels if part is not None]), Y)


@pytest.mark.parametrize("images", UNLABELLED.values(), ids=UNLABELLED)
def test_unlabelled_images_have_no_labels(images: object) -> None:
    batches = as_batches(images, batch_size=2)
    assert (len(batches), batches.images, batches.labelled) == (3, 5, False)
    assert torch.equal(torch.cat([batch.images_BCHW for batch in batches]), X)
    assert all(batch.labels_B is None for batch in batches)


def test_loaders_and_lists_of_batches_keep_their_sizes() -> None:
    loader = DataLoader(TensorDataset(X, Y), 3, drop_last=True)
    batches = as_batches(loader, batch_size=2)
    assert (sizes(batches), len(batches), batches.images) == ([3], 1, 3)
    assert sizes(as_batches([X[:4], X[4:]], batch_size=2)) == [4, 1]


def test_batches_pass_through_and_move() -> None:
    batches = as_batches((X, Y), 2)
    assert as_batches(batches) is batches
    moved = next(iter(as_batches(batches, device="meta")))
    assert moved.images_BCHW.device.type == "meta"
    assert moved.labels_B is not None and moved.labels_B.device.type == "meta"
    assert next(iter(as_batches(X, device="meta"))).images_BCHW.device.type == "meta"


def test_workers_keep_the_order() -> None:
    batches = as_batches(Images(), 2, workers=2)
    assert torch.equal(torch.cat([batch.images_BCHW for batch in batches]), X)


REFUSED = {
    "cannot be passed over twice": iter(list(X)),
    "a generator cannot": (x for x in X),
    "a Stream cannot": Stream(),
    "a DataLoader over a Stream": DataLoader(Stream()),
    "shuffles": DataLoader(Images(), shuffle=True),
    "does not batch": DataLoader(Images(), batch_size=None),
    "there are no images": [],
    "give them as": X[0],
    "tensor \\[2\\]": [torch.ones(2)],
    "found a str": "folder",
    "from a int": 3,
    "torch.uint8": X.to(torch.uint8),
    "must not mix single": [X[0], X],
    "one class number per image": (TensorDataset(X, torch.rand(5, 4))),
}


@pytest.mark.parametrize(("complaint", "images"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(complaint: str, images: object) -> None:
    with pytest.raises(UserError, match=complaint):
        list(as_batches(images))


def test_no_images_at_all_are_refused() -> None:
    for empty in (X[:0], TensorDataset(X[:0]), DataLoader(TensorDataset(X[:0]))):
        with pytest.raises(UserError, match="there are no images"):
            as_batches(empty)
    with pytest.raises(UserError, match="at least 1, not 0"):
        as_batches(X, batch_size=0)


def test_labels_that_stop_in_the_middle_are_refused() -> None:
    batches = as_batches(TensorDataset(X, torch.tensor([0, 1, 1, -1, 0])), 2)
    with pytest.raises(UserError, match="only some images"):
        list(batches)


@pytest.mark.parametrize("sort", ["tensor", "list", "loader", "moved"])
def test_every_nth_batch(sort: str) -> None:
    images = torch.arange(11.0).view(11, 1, 1, 1)
    loader = DataLoader(TensorDataset(images, torch.arange(11)), batch_size=2)
    given: dict[str, object] = {
        "tensor": images,
        "list": list(images),
        "loader": loader,
        "moved": as_batches(loader, device="cpu"),
    }
    batches = as_batches(given[sort], 2)
    whole = [batch.images_BCHW.flatten().tolist() for batch in batches]
    for step in (1, 2, 4):
        for first in range(step):
            some = [batch.images_BCHW.flatten().tolist() for batch in batches.every(first, step)]
            assert some == whole[first::step]


def test_batches_of_others_are_not_decoded() -> None:
    read: list[int] = []

    class Counted(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> torch.Tensor:
            read.append(index)
            return torch.full((1, 1, 1), float(index))

    batches = as_batches(Counted(), 2)
    read.clear()
    assert len(list(batches.every(1, 2))) == 2
    assert read == [2, 3, 6, 7]
