"""Held-out images, the classifier solved for anew, and low-rank updates."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.training.distillation.losses import divergence
from secateur.training.distillation.teacher import teacher_for
from secateur.training.head import classifier_of, refit_head_
from secateur.training.images.held_out import MOST, HeldOut, hold_out
from secateur.training.images.sampler import items_of
from secateur.training.settings import AugmentSettings
from secateur.training.updates.lora import attach_, merge_
from secateur.zoo import digits_vit
from tests.hosts import build, images_for
from tests.training.learners import copy_of, fit, fresh, same, settings


def test_images_are_shared_out_between_learning_and_judging() -> None:
    images = torch.arange(50.0).reshape(50, 1, 1, 1)
    learn, held = hold_out(images, 50, 0.2)
    assert isinstance(learn, Tensor) and isinstance(held, Tensor)
    assert (len(learn), len(held)) == (40, 10)
    assert sorted(torch.cat([learn, held]).flatten().tolist()) == list(range(50))
    pair = hold_out((images, torch.arange(50)), 50, 0.2)[1]
    assert isinstance(pair, tuple) and pair[1].tolist() == held.flatten().tolist()
    data = hold_out(TensorDataset(images), 50, 0.2)[1]
    assert [float(data[i][0]) for i in range(10)] == held.flatten().tolist()  # type: ignore[index]
    assert hold_out(images, 50, 0.0) == (images, None)
    assert len(hold_out(torch.zeros(5 * MOST), 5 * MOST, 0.5)[1]) == MOST  # type: ignore[arg-type]
    with pytest.raises(UserError, match="2 images are too few to hold out 20 %"):
        hold_out(images[:2], 2, 0.2)


def test_files_keep_their_names_and_labels() -> None:
    images = open_images("digits", Preprocessing.of(digits_vit()), limit=20)
    learn, held = hold_out(images, 20, 0.25)
    both = [*learn.names, *held.names]  # type: ignore[attr-defined]
    assert sorted(both) == sorted(images.names)
    where = images.names.index(held.names[1])  # type: ignore[attr-defined]
    assert torch.equal(held[1][0], images[where][0]) and held[1][1] == images[where][1]  # type: ignore[index]


def test_a_spoilt_classifier_is_solved_for() -> None:
    dense = build("vit")
    model, images = copy.deepcopy(dense), images_for(dense, 120)
    with torch.no_grad():
        model.head.weight.add_(torch.randn_like(model.head.weight))
        model.head.bias.zero_()
    teacher = teacher_for(model, dense)
    items = items_of(images[:80], AugmentSettings())
    judge = HeldOut(items=items_of(images[80:], AugmentSettings()), labels=False, teacher=teacher)
    assert refit_head_(model, teacher, items, judge) == 1e-3
    with torch.no_grad():
        assert divergence(model(images), dense(images)) < 1e-3
    before = copy_of(model)
    assert refit_head_(before, teacher, items, _Indifferent()) is None  # type: ignore[arg-type]
    assert same(before, model)


class _Indifferent:
    def __call__(self, model: nn.Module, part: int, parts: int) -> dict[str, tuple[float, float]]:
        return {"kl": (1.0, 1.0)}


def test_the_classifier_is_found_by_what_it_gives() -> None:
    for name in ("vit", "vit_attention_pool"):
        model = build(name)
        assert classifier_of(model, images_for(model, 1)[0]) is model.head
    with pytest.raises(UserError, match="no linear layer with a bias gives"):
        classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), torch.ones(1, 2, 2))


def test_low_rank_updates_train_alone_and_are_merged() -> None:
    model, plain = fresh(), fresh()
    names = list(model.state_dict())
    layers = attach_(model, 2)
    assert len(layers) == 12
    free = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(("down" in name or "up" in name or name.startswith("head")) for name in free)
    report = fit(model, settings(optimizer={"learning_rate": 1e-2}, log_every=5))
    merge_(layers)
    assert list(model.state_dict()) == names or set(model.state_dict()) == set(names)
    assert report.history[-1]["loss"] < report.history[0]["loss"]
    change = model.blocks[0].mlp.fc1.weight - plain.blocks[0].mlp.fc1.weight
    assert 0 < int(torch.linalg.matrix_rank(change.detach(), rtol=1e-4)) <= 2
    assert torch.equal(model.patch_embed.proj.weight, plain.patch_embed.proj.weight)
    images = images_for(model)
    assert type(model.blocks[0].mlp.fc1) is nn.Linear and model(images).shape == (4, 10)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    model = fresh()
    with pytest.raises(UserError, match="lora_rank 32 is no smaller"):
        attach_(model, 32)
    assert all(p.requires_grad for p in model.parameters())
