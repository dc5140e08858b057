"""The stream of training images: every position has its image and its own randomness."""

import random

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.training.images.sampler import (
    Stream,
    in_memory,
    items_of,
    loader_of,
    preparer,
    seeded,
)
from secateur.training.lesson import Moment
from secateur.training.settings import AugmentSettings, TrainSettings
from secateur.zoo import digits_vit


class Noisy(Dataset[Tensor]):
    """Images that hold their number and a draw from each global generator."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor([float(index), *drawn]).reshape(1, 2, 2)


def batches(settings: TrainSettings, start: int = 0, steps: int = 6) -> list[Tensor]:
    found = loader_of(Noisy(), settings, start=start, steps=steps, pin=False)
    return [images for images, _, _ in found]


def test_every_pass_shows_every_image_once_in_another_order() -> None:
    seen = torch.cat(batches(TrainSettings(batch_size=5), steps=3))[:, 0, 0, 0].reshape(3, 5)
    assert all(sorted(row.tolist()) == [0, 1, 2, 3, 4] for row in seen)
    assert len({tuple(row.tolist()) for row in seen}) > 1
    noise = torch.cat(batches(TrainSettings(batch_size=5), steps=3)).flatten(1)[:, 1:]
    assert all(len(column.unique()) == 15 for column in noise.T)


def test_batches_do_not_depend_on_start_workers_or_what_was_drawn() -> None:
    whole = batches(TrainSettings(batch_size=3))
    random.random(), np.random.rand(), torch.rand(2)
    later = batches(TrainSettings(batch_size=3), start=4)
    assert len(later) == 2 and all(torch.equal(a, b) for a, b in zip(whole[4:], later, strict=True))
    by_workers = batches(TrainSettings(batch_size=3, workers=1))
    assert all(torch.equal(a, b) for a, b in zip(whole, by_workers, strict=True))
    parts = batches(TrainSettings(batch_size=4, accumulate=2), steps=1)
    assert torch.equal(torch.cat(parts), batches(TrainSettings(batch_size=4), steps=1)[0])


def test_repeats_stand_side_by_side_with_noise_of_their_own() -> None:
    augment = AugmentSettings(repeats=3)
    seen = torch.cat(batches(TrainSettings(batch_size=6, augment=augment), steps=5)).flatten(1)
    numbers = seen[:, 0].reshape(2, 5, 3)
    assert torch.equal(numbers, numbers[..., :1].expand(2, 5, 3))
    assert all(sorted(row.tolist()) == [0, 1, 2, 3, 4] for row in numbers[..., 0])
    assert all(len(column.unique()) == 30 for column in seen[:, 1:].T)


def test_views_take_turns_and_have_numbers() -> None:
    stream = Stream(Noisy(), seed=0, views=2)
    visits: dict[int, list[Tensor]] = {}
    for image, _, row in (stream[position] for position in range(20)):
        assert row // 2 == int(image[0, 0, 0])
        visits.setdefault(row, []).append(image)
    assert sorted(visits) == list(range(10))
    assert all(len(seen) == 2 and torch.equal(*seen) for seen in visits.values())
    noise = torch.stack([seen[0].flatten()[1:] for seen in visits.values()])
    assert all(len(column.unique()) == 10 for column in noise.T)
    repeated = Stream(Noisy(), seed=0, repeats=2, views=4)
    assert sorted(repeated[position][2] for position in range(20)) == list(range(20))
    assert all(Stream(Noisy(), seed=0)[position][2] == -1 for position in range(5))


def test_generators_are_put_back() -> None:
    for draw in (random.random, np.random.rand, lambda: float(torch.rand(()))):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        wanted = draw()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        with seeded(3, 4):
            inside = draw()
        assert draw() == wanted != inside


def test_files_are_augmented_and_read_once() -> None:
    images = open_images("digits", Preprocessing.of(digits_vit()), limit=20)
    items = items_of(images, AugmentSettings(least_area=0.3))
    stream = Stream(items, seed=0)
    assert torch.equal(stream[3][0], stream[3][0])
    assert not torch.equal(stream[3][0], stream[23][0])
    assert stream[3][0].shape == (1, 8, 8)
    labels = [label for _, label, _ in (stream[i] for i in range(20))]
    assert sorted(labels) == sorted(images.labels)
    assert in_memory(images, most_bytes=10).read == images.read
    assert in_memory(images).read(4) == images.read(4)


def test_mixing_pairs_images_and_ends_in_time() -> None:
    settings = TrainSettings(augment=AugmentSettings(mixup=1.0, mix_until=0.5))
    images, labels = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])
    rows = torch.full((4,), -1)
    prepare = preparer(settings, classes=3, labelled=True, process=0)
    mixed = prepare((images.clone(), labels, rows), Moment(step=0, share=0.0), 0)
    assert mixed.targets_BC is not None
    assert torch.allclose(mixed.targets_BC.sum(-1), torch.ones(4))
    assert not torch.equal(mixed.images_BCHW, images)
    again = prepare((images.clone(), labels, rows), Moment(step=0, share=0.0), 0)
    assert torch.equal(mixed.images_BCHW, again.images_BCHW)
    late = prepare((images, labels, rows), Moment(step=0, share=0.5), 0)
    assert late.targets_BC is None and torch.equal(late.images_BCHW, images)
    blind = preparer(settings, classes=3, labelled=False, process=0)
    unlabelled = blind((images, torch.full((4,), -1), rows), Moment(step=0, share=0.0), 0)
    assert unlabelled.labels_B is None and unlabelled.targets_BC is None


def test_a_loader_takes_the_stream() -> None:
    found = next(iter(DataLoader(Stream(items_of(torch.zeros(3, 1, 2, 2), AugmentSettings()), 0))))
    assert found[0].shape == (1, 1, 2, 2) and found[1].tolist() == [-1]
