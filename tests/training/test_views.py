"""Augmented views are made once and kept: bit for bit the same, also for other runs and workers."""

import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import secateur
from secateur.data.images import ImageSet, open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.masks.settings import LearnSettings
from secateur.training.distillation.objectives import DistilSettings
from secateur.training.heal_and_train import HealSettings
from secateur.training.images.sampler import Stream, items_of, loader_of
from secateur.training.images.views import kept_views
from secateur.training.settings import AugmentSettings, TrainSettings
from secateur.zoo import digits_vit

AUGMENT = AugmentSettings(views=2, auto="rand-m9-n2-mstd0.5", color_jitter=0.2)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Twelve random images of three channels, of 20 by 16 pixels."""
    folder = tmp_path_factory.mktemp("colours")
    generator = torch.Generator().manual_seed(0)
    for index in range(12):
        pixels_HWC = torch.randint(0, 256, (20, 16, 3), generator=generator, dtype=torch.uint8)
        place = folder / f"class{index % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels_HWC.numpy()).save(place / f"{index}.png")
    shown = Preprocessing(
        input_size=(3, 12, 12),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    return open_images(folder, shown)


def settings(folder: Path | None, augment: AugmentSettings = AUGMENT, **more: Any) -> TrainSettings:
    return TrainSettings(batch_size=4, augment=augment, kept_views=folder, **more)


def seen(images: object, given: TrainSettings) -> list[Tensor]:
    loader = loader_of(items_of(images, given.augment), given, start=0, steps=9, pin=False)
    return [part for batch in loader for part in batch]


def test_kept_views_are_bit_for_bit_what_the_transform_gives(
    tmp_path: Path, colours: ImageSet
) -> None:
    wanted = seen(colours, settings(None))
    for workers in (0, 0, 1):
        found = seen(colours, settings(tmp_path / "new", workers=workers))
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert len(list((tmp_path / "new").iterdir())) == 1
    seen(colours, settings(tmp_path / "new", seed=1))
    seen(colours, settings(tmp_path / "new", AugmentSettings(views=2)))
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_view_is_made_once_by_all_who_share_the_folder(tmp_path: Path, colours: ImageSet) -> None:
    given, made = settings(tmp_path), []

    def transform(image: Image.Image) -> Tensor:
        made.append(1)
        return plain(image)

    plain = items_of(colours, AUGMENT).transform  # type: ignore[attr-defined]
    items = replace(colours, transform=transform)
    for _ in range(2):
        kept = pickle.loads(pickle.dumps(kept_views(items, given)))
        stream = Stream(items, given.seed, views=2, kept=kept)
        for position in range(48):
            stream[position]
    assert len(made) == 24


def test_what_8_bits_cannot_hold_is_refused(tmp_path: Path, colours: ImageSet) -> None:
    erasing = AugmentSettings(views=2, erase=1.0)
    with pytest.raises(UserError, match="8 bits"):
        seen(colours, settings(tmp_path, erasing))


def test_bad_input_is_refused(
    tmp_path: Path, colours: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"set augment\.views"):
        TrainSettings(kept_views=tmp_path)
    with pytest.raises(UserError, match="give a path"):
        seen(torch.randn(8, 3, 4, 4), settings(tmp_path))
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UserError, match="cannot be kept in"):
        seen(colours, settings(taken))
    # The file is there, of full length, but none of it is on the disk yet.
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"0\.0 GB are free"):
        seen(colours, settings(tmp_path))


def test_a_full_disk_is_told(
    tmp_path: Path, colours: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: len(data) // 2)
    with pytest.raises(UserError, match="No space left"):
        seen(colours, settings(tmp_path))


def test_training_is_the_same_and_goes_on_with_kept_views(tmp_path: Path) -> None:
    dense = digits_vit()
    images = open_images("digits/train", Preprocessing.of(dense), limit=40)
    told = HealSettings(
        steps=6,
        batch_size=8,
        augment=AugmentSettings(flip=False, views=2),
        distil=DistilSettings(token_weight=0.0, layerwise=0.0),
        log_every=1,
        checkpoint_seconds=0,
    )
    keeping = told.model_copy(update={"kept_views": tmp_path / "views"})

    def healed(given: HealSettings, **more: Any) -> dict[str, Tensor]:
        student = digits_vit()
        found = secateur.heal(student, images, reference=dense, settings=given, **more)
        return found.model.state_dict()

    def stop(row: Mapping[str, float]) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    wanted = healed(told)
    with pytest.raises(KeyboardInterrupt):
        healed(told, folder=tmp_path / "run", on_log=stop)
    for found in (healed(keeping), healed(keeping, folder=tmp_path / "run")):
        assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_masks_are_learned_with_kept_views_or_refused_at_once(tmp_path: Path) -> None:
    dense = digits_vit()
    told = LearnSettings(
        steps=4,
        batch_size=8,
        augment=AugmentSettings(flip=False, views=2),
        kept_views=tmp_path,
        distil=DistilSettings(token_weight=0.0, layerwise=0.0),
    )
    secateur.learn(dense, "digits/train", "60% params", settings=told, limit=40)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="give a path"):
        secateur.learn(dense, torch.randn(20, 1, 8, 8), "60% params", settings=told)
