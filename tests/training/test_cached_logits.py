"""A teacher's answers are kept by view: asked once, found again, never mistaken for others."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.data.images import ImageSet, open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.masks.settings import LearnSettings
from secateur.training.distillation.cached_logits import CachedLogits, cached_logits_for
from secateur.training.distillation.objectives import DistilSettings
from secateur.training.distillation.teacher import Teacher, teacher_for
from secateur.training.heal_and_train import HealSettings
from secateur.training.images.held_out import part_of
from secateur.training.settings import AugmentSettings
from secateur.zoo import digits_vit

OUTPUTS = {"token_weight": 0.0, "layerwise": 0.0}


class Asked:
    """A teacher that counts the images it is asked about."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        self.images += len(images_BCHW)
        return images_BCHW.flatten(1)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_images("digits/train", Preprocessing.of(digits_vit()), limit=40)


def settings(folder: Path | None, views: int | None = 2, **changes: object) -> HealSettings:
    distil = DistilSettings(**OUTPUTS, answers=folder)
    return HealSettings(distil=distil, augment=AugmentSettings(flip=False, views=views), **changes)


def test_a_view_is_asked_about_once_by_all_who_share_the_file(tmp_path: Path) -> None:
    images_BCHW, asked = torch.randn(4, 1, 1, 3), Asked()
    mine, other = (CachedLogits(tmp_path / "new" / "file", views=6, classes=3) for _ in range(2))
    rows_B = torch.tensor([5, 0, 2, 3])
    assert torch.equal(mine(images_BCHW, rows_B, asked), images_BCHW.flatten(1))
    assert asked.images == 4
    turned = other(images_BCHW.flip(0), rows_B.flip(0), asked)
    assert torch.equal(turned, images_BCHW.flip(0).flatten(1)) and asked.images == 4
    some = other(images_BCHW[:2], torch.tensor([1, 5]), asked)
    assert asked.images == 5
    assert torch.equal(some[0], images_BCHW[0].flatten())
    assert torch.equal(some[1], images_BCHW[0].flatten())
    later = CachedLogits(tmp_path / "new" / "file", views=6, classes=3)
    assert torch.equal(later(images_BCHW, rows_B, asked), images_BCHW.flatten(1))
    assert asked.images == 5


def test_an_answer_that_was_only_begun_does_not_count(tmp_path: Path) -> None:
    images_BCHW, asked = torch.randn(2, 1, 1, 3), Asked()
    kept = CachedLogits(tmp_path / "file", views=2, classes=3)
    kept(images_BCHW, torch.tensor([0, 1]), asked)
    with (tmp_path / "file").open("r+b") as file:
        file.seek(16)
        file.write(bytes(8)), file.seek(28), file.write(bytes(4))
    found = kept(images_BCHW, torch.tensor([0, 1]), asked)
    assert torch.equal(found, images_BCHW.flatten(1)) and asked.images == 3


def test_what_the_teacher_sees_names_the_file(tmp_path: Path, digits: ImageSet) -> None:
    model = digits_vit()
    other = digits_vit()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    fewer = part_of(digits, range(30))
    plain = settings(tmp_path)
    smaller = plain.augment.model_copy(update={"least_area": 0.5})

    def file(teacher: nn.Module = model, images: object = digits, it: HealSettings = plain) -> str:
        found = cached_logits_for(teacher_for(model, teacher), images, it, tmp_path, 10)
        assert found is not None
        return found.file.name

    files = [
        file(),
        file(teacher=other),
        file(images=fewer),
        file(it=plain.model_copy(update={"seed": 1})),
        file(it=plain.model_copy(update={"precision": "bf16"})),
        file(it=plain.model_copy(update={"augment": smaller})),
    ]
    assert len(set(files)) == len(files) and file() == files[0]


def test_training_is_the_same_with_and_without(
    tmp_path: Path, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [0]
    plain = Teacher.logits

    def counted(self: Teacher, images_BCHW: Tensor) -> Tensor:
        counts[0] += len(images_BCHW)
        return plain(self, images_BCHW)

    monkeypatch.setattr(Teacher, "logits", counted)
    dense = digits_vit()
    small = secateur.prune(dense, "digits/train", "60% params", limit=40, preset="magnitude").model
    given = {"steps": 12, "batch_size": 8, "held_out": 0.0, "ema": None}
    weights, asked = [], []
    for folder in (None, tmp_path, tmp_path):
        counts[0] = 0
        it = settings(folder, **given)
        weights.append(secateur.heal(small, digits, reference=dense, settings=it).model)
        asked.append(counts[0])
    # 96 images pass, each of the 40 in two views.
    assert asked == [96, 80, 0]
    states = [model.state_dict() for model in weights]
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5)
        assert torch.equal(states[1][name], states[2][name])


def test_masks_are_learned_with_kept_answers(tmp_path: Path, digits: ImageSet) -> None:
    it = LearnSettings(
        steps=8,
        batch_size=10,
        observe=20,
        held_out=0.0,
        augment=AugmentSettings(flip=False, views=1),
        distil=DistilSettings(**OUTPUTS, label_weight=0.5, answers=tmp_path),
    )
    secateur.learn(digits_vit(), digits, "60% params", settings=it)
    (file,) = tmp_path.iterdir()
    known = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32).reshape(-1, 11)
    assert len(known) == 40 and bool((known[:, -1] == 1).all())


def test_bad_input_is_refused_before_training(tmp_path: Path, digits: ImageSet) -> None:
    dense = digits_vit()
    with pytest.raises(UserError, match=r"set augment\.views"):
        secateur.heal(dense, digits, reference=dense, settings=settings(tmp_path, views=None))
    tensor = torch.randn(20, 1, 8, 8)
    with pytest.raises(UserError, match="give a path"):
        secateur.heal(dense, tensor, reference=dense, settings=settings(tmp_path))
    learned = LearnSettings(distil=DistilSettings(**OUTPUTS, answers=tmp_path))
    with pytest.raises(UserError, match=r"set augment\.views"):
        secateur.learn(dense, digits, "60% params", settings=learned)
    with pytest.raises(ValueError, match="token_weight"):
        DistilSettings(answers=tmp_path)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(UserError, match="cannot be kept in"):
        secateur.heal(dense, digits, reference=dense, settings=settings(taken))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CachedLogits(tmp_path / "file", views=2, classes=3)
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: len(data) // 2)
    with pytest.raises(UserError, match="No space left"):
        kept(torch.randn(1, 1, 1, 3), torch.tensor([0]), Asked())
