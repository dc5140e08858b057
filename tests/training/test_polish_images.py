"""What a polish trains on, what it holds out, and what it does to the former."""

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.training import PolishSettings, parse_run_length, polish_
from secateur.training.polish import Augmented, require_polishable, split
from tests.hosts import build, images_for


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
        require_polishable(nn.Identity(), 4)


def test_fewer_images_than_a_batch_come_once_each_step() -> None:
    dense = build("vit")
    student, images, seen = copy.deepcopy(dense), images_for(dense, 6), []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            seen.append(inputs[0])

    student.patch_embed.register_forward_pre_hook(watch)
    whole = PolishSettings(least_area=1.0, flip=False)
    report = polish_(
        student, dense, as_batches(images, 1), parse_run_length("3 steps"), settings=whole
    )
    assert (report.images, report.held_out, len(seen)) == (5, 1, 3)
    for batch in seen:
        assert len(batch) == 5
        gaps = (batch[:, None] - images[[0, 1, 2, 3, 5]]).abs().amax((2, 3, 4))
        assert sorted(gaps.argmin(1).tolist()) == [0, 1, 2, 3, 4] and gaps.amin(1).max() < 1e-5


def gradient_image(count: int) -> Tensor:
    """Pixels that say where they are: channel 0 across, channel 1 down, both from -1 to 1."""
    at = (torch.arange(64) + 0.5) / 32 - 1
    return torch.stack([at.expand(64, 64), at[:, None].expand(64, 64)]).repeat(count, 1, 1, 1)


def test_crops_lie_inside_and_keep_their_shape() -> None:
    torch.manual_seed(0)
    seen = torch.stack(list(Augmented(gradient_image(200), 0.5, flip=True)))
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
    same = torch.stack(list(Augmented(images, 1.0, flip=False)))
    assert torch.allclose(same, images, atol=1e-5)
    mirrored = list(Augmented(images, 1.0, flip=True))
    for image, original in zip(mirrored, images, strict=True):
        assert torch.allclose(image, original, atol=1e-5) or torch.allclose(
            image, original.flip(-1), atol=1e-5
        )


def test_crops_of_oblong_images_keep_their_shape() -> None:
    images = torch.randn(4, 3, 16, 24)
    assert torch.stack(list(Augmented(images, 0.5, flip=True))).shape == images.shape
