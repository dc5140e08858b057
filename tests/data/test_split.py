"""Images of a fit and images held out of it share nothing, and no more are read than asked for."""

import pytest
import torch
from torch import Tensor

from secateur.data.batches import Batches, as_batches
from secateur.data.split import (
    all_images,
    first_batches,
    first_images,
    fit_and_held,
    is_held,
    keep_evenly,
)


def numbered(count: int, batch_size: int) -> Batches:
    """Images whose pixels, and labels, are their numbers."""
    numbers = torch.arange(count)
    return as_batches((numbers[:, None, None, None].float(), numbers), batch_size)


def numbers_of(batches: Batches) -> list[int]:
    return [int(x) for batch in batches for x in batch.images_BCHW.flatten()]


def test_every_fifth_is_held_out_or_the_last_of_fewer() -> None:
    assert [n for n in range(12) if is_held(n, 12)] == [4, 9]
    assert [n for n in range(3) if is_held(n, 3)] == [2]
    assert not is_held(0, 1)


@pytest.mark.parametrize(
    ("count", "size", "held"),
    [
        (24, 2, [8, 9, 18, 19]),
        (10, 2, [8, 9]),
        (12, 4, [4, 9]),
        (32, 32, [4, 9, 14, 19, 24, 29]),
        (3, 2, [2]),
        (2, 2, [1]),
    ],
)
def test_fit_and_held_out_images_are_all_and_share_none(
    count: int, size: int, held: list[int]
) -> None:
    fit, apart = fit_and_held(numbered(count, size))
    for part, expected in ((apart, held), (fit, [n for n in range(count) if n not in held])):
        assert numbers_of(part) == expected == numbers_of(part)
        assert part.images == len(expected)
        assert [int(n) for batch in part for n in batch.labels_B] == expected  # type: ignore[union-attr]


def test_a_single_image_is_both() -> None:
    assert [numbers_of(part) for part in fit_and_held(numbered(1, 4))] == [[0], [0]]


def test_no_more_images_are_read_than_asked_for() -> None:
    """Memory and time for probes do not grow with the number of calibration images."""
    read: list[int] = []

    class Counted(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 4000

        def __getitem__(self, number: int) -> Tensor:
            read.append(number)
            return torch.full((1, 1, 1), float(number))

    batches = as_batches(Counted(), 4)
    read.clear()
    held = fit_and_held(batches)[1]
    assert all_images(first_images(held, 6)).flatten().tolist() == [16, 17, 18, 19, 36, 37]
    assert read == [16, 17, 18, 19, 36, 37, 38, 39]


def test_the_first_images_come_in_their_batches_or_in_smaller_ones() -> None:
    batches = numbered(10, 4)
    sizes = [len(batch.images_BCHW) for batch in first_images(batches, 7)]
    assert (sizes, numbers_of(first_images(batches, 7))) == ([4, 3], list(range(7)))
    few = first_images(batches, 7, at_once=2)
    assert [len(batch.images_BCHW) for batch in few] == [2, 2, 2, 1]
    assert (few.images, len(few), numbers_of(few)) == (7, 4, list(range(7)))
    assert numbers_of(first_images(batches, 99)) == list(range(10))


def test_the_first_whole_batches() -> None:
    batches = numbered(10, 4)
    assert numbers_of(first_batches(batches, 9)) == list(range(8))
    assert numbers_of(first_batches(batches, 1)) == list(range(4))
    assert first_batches(batches, 10) is batches


def test_probe_images_come_from_all_over_and_give_no_evidence() -> None:
    images, labels = torch.arange(50.0).view(50, 1, 1, 1), torch.arange(50)
    batches, kept = keep_evenly(as_batches((images, labels), 5), 12)
    seen = [(b.images_BCHW.flatten().tolist(), b.labels_B) for b in batches]
    found = torch.cat(kept).flatten().tolist()
    assert len(found) == 12 and found[0] < 5 and found[-1] >= 45
    rest = [x for xs, _ in seen for x in xs]
    assert sorted([*rest, *found]) == list(range(50)) and batches.images == len(rest) == 38
    assert [int(y) for _, ys in seen for y in (ys if ys is not None else [])] == rest
    few, kept = keep_evenly(as_batches(images[:20], 5), 12)
    assert sum(len(batch.images_BCHW) for batch in few) == few.images == 20
    assert len(torch.cat(kept)) == 12


def test_some_images_few_at_a_time() -> None:
    images, labels = torch.arange(150.0).view(150, 1, 1, 1), torch.arange(150)
    parts = list(first_images(as_batches((images, labels), 20), 64, 8))
    assert torch.cat([p.images_BCHW for p in parts]).flatten().tolist() == list(range(64))
    assert torch.cat([p.labels_B for p in parts if p.labels_B is not None]).tolist() == list(
        range(64)
    )
    assert max(len(p.images_BCHW) for p in parts) == 8
