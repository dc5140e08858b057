"""What a polish trains on, what it holds out, and what it does to the former."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.training.images import augment, shuffled, split


def numbered(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 1, 4, 4)


def numbers(images: Tensor) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def test_every_fifth_batch_is_held_out() -> None:
    train, held = split(as_batches(numbered(22), 2))
    assert numbers(held) == [8, 9, 18, 19]
    assert sorted(numbers(train) + numbers(held)) == list(range(22))


def test_every_fifth_image_where_batches_are_few() -> None:
    train, held = split(as_batches(numbered(10), 8))
    assert numbers(held) == [4, 9]
    assert len(train) == 8


def test_images_beyond_the_memory_are_left_out() -> None:
    train, held = split(as_batches(numbered(100), 2), most_bytes=20 * 16 * 4)
    assert sorted(numbers(train) + numbers(held)) == list(range(20))


def test_too_few_images() -> None:
    with pytest.raises(UserError, match="4 calibration images are too few"):
        split(as_batches(numbered(4), 1))


def test_a_pass_shows_no_image_twice_and_a_seed_repeats() -> None:
    def passes(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [numbers(b) for b in islice(shuffled(numbered(10), 4, generator), 4)]

    first = passes(0)
    assert len({*first[0], *first[1]}) == 8
    assert first == passes(0) != passes(1)


def gradient_image(count: int) -> Tensor:
    """Pixels that say where they are: channel 0 across, channel 1 down, both from -1 to 1."""
    at = (torch.arange(64) + 0.5) / 32 - 1
    return torch.stack([at.expand(64, 64), at[:, None].expand(64, 64)]).repeat(count, 1, 1, 1)


def test_crops_lie_inside_and_keep_their_shape() -> None:
    seen = augment(gradient_image(200), 0.5, torch.Generator().manual_seed(0))
    assert seen.shape == (200, 2, 64, 64)
    across = seen[:, 0, 0, -1] - seen[:, 0, 0, 0]
    down = seen[:, 1, -1, 0] - seen[:, 1, 0, 0]
    assert seen.abs().max() <= 1
    # As much across as down (up to half a pixel at the borders), and by chance mirrored.
    assert torch.allclose(across.abs(), down, atol=0.04)
    assert 60 < int((across < 0).sum()) < 140
    area = (down / 2).square()
    assert 0.45 < float(area.min()) < 0.55
    assert 0.9 < float(area.max()) <= 1


def test_whole_images_stay_as_they_are() -> None:
    images = torch.randn(5, 3, 16, 16)
    same = augment(images, 1.0, torch.Generator().manual_seed(0), flip=False)
    assert torch.allclose(same, images, atol=1e-5)
    mirrored = augment(images, 1.0, torch.Generator().manual_seed(0))
    for image, original in zip(mirrored, images, strict=True):
        assert torch.allclose(image, original, atol=1e-5) or torch.allclose(
            image, original.flip(-1), atol=1e-5
        )
