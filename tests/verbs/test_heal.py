"""Healing as a function: it helps, leaves what it is given, saves what loads, refuses early."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import UserError
from secateur.training.distillation.losses import divergence
from secateur.training.heal_and_train import HealSettings
from secateur.verbs.heal import open_reference
from secateur.verbs.result import Result
from tests.hosts import build, images_for
from tests.training.learners import copy_of, same

QUIET = {"steps": 20, "batch_size": 16, "trackers": ()}


def how(**changes: object) -> HealSettings:
    return HealSettings.model_validate(
        {**QUIET, "optimizer": {"learning_rate": 1e-3}, "ema": None, **changes}
    )


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return build("vit")


@pytest.fixture(scope="module")
def images(dense: nn.Module) -> Tensor:
    return images_for(dense, 80)


@pytest.fixture(scope="module")
def cut(dense: nn.Module, images: Tensor) -> Result:
    return secateur.prune(dense, images, "50% hidden, drop 1 attention", preset="magnitude")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "small"
    model = secateur.load("digits_vit")
    secateur.prune(model, "digits/train", "10% hidden", preset="magnitude", limit=40).save(out)
    return out


@pytest.mark.parametrize(
    "changes", [{}, {"refit_head": True, "steps": 5}, {"lora_rank": 4}, {"held_out": 0.0}]
)
def test_it_comes_nearer_to_the_dense_model(
    dense: nn.Module, images: Tensor, cut: Result, changes: dict[str, object]
) -> None:
    before, teacher = copy_of(cut.model), copy_of(dense)
    found = secateur.heal(cut, images, reference=dense, settings=how(**changes))
    fresh = images_for(dense, 40, seed=9)
    with torch.no_grad():
        gap = [divergence(model(fresh), dense(fresh)) for model in (found.model, cut.model)]
    assert gap[0] < 0.8 * gap[1]
    assert same(cut.model, before) and same(dense, teacher)
    assert all(p.requires_grad for p in dense.parameters())
    assert all(p.requires_grad for p in found.model.parameters())
    assert (found.report.images == 80) == ("held_out" in changes)
    assert found.cost.params == cut.cost.params < found.cost_dense.params


def test_labels_are_learned_only_when_wanted(dense: nn.Module, images: Tensor, cut: Result) -> None:
    labels = torch.arange(80) % 10
    short = how(steps=3, log_every=1, distil={"layerwise": 0.0})
    plain = secateur.heal(cut, (images, labels), reference=dense, settings=short)
    assert "labels" not in plain.report.history[0]
    assert list(plain.report.scores[0].values) == ["kl"]
    told = secateur.heal(cut, (images, labels), reference=dense, settings=short, labels=True)
    assert "labels" in told.report.history[0]
    assert list(told.report.scores[0].values) == ["error", "cross_entropy", "kl"]
    with pytest.raises(UserError, match=r"no labels to learn from.*--no-labels"):
        secateur.heal(cut, images, reference=dense, settings=short, labels=True)


def test_a_saved_model_is_healed_and_saved_again(saved: Path, tmp_path: Path) -> None:
    found = secateur.heal(
        secateur.load(saved),
        "digits/train",
        limit=200,
        settings=how(steps=10),
        eval_images="digits/test",
    )
    found.save(tmp_path / "healed")
    again = secateur.load(tmp_path / "healed")
    assert same(again, found.model)
    spec = json.loads((tmp_path / "healed" / "spec.json").read_text())
    assert spec["provenance"]["preset"] == "magnitude"
    assert spec["provenance"]["budget"] == "10% hidden"
    assert spec["provenance"]["heal"]["steps"] == 10
    assert spec["provenance"]["heal"]["settings"]["batch_size"] == 16
    accuracy = found.accuracy
    assert min(s.value for s in found.report.scores) < 0.7 * found.report.scores[0].value
    assert accuracy.keys() == {"dense", "before", "pruned"} and accuracy["pruned"].n == 450
    assert spec["results"]["top1"] == {
        "dense": accuracy["dense"].top1,
        "pruned": accuracy["pruned"].top1,
    }
    training = json.loads((tmp_path / "healed" / "training.json").read_text())
    assert training["training"]["history"][-1]["step"] == 10
    assert 0 <= training["accuracy"]["pruned"]["change_stderr"] < 5
    page = (tmp_path / "healed" / "report.html").read_text(encoding="utf-8")
    assert "healed" in page and "held-out score" in page and "paired standard error" in page
    record = found.record()
    assert record["preset"] == "magnitude" and record["macs"]["pruned"] < record["macs"]["dense"]
    assert record["seconds"] == pytest.approx(sum(found.seconds.values()))
    # A healed model can be healed again.
    twice = secateur.heal(again, "digits/train", limit=60, settings=how(steps=1))
    assert twice.earlier["heal"]["steps"] == 10


def test_a_stopped_run_goes_on(saved: Path, tmp_path: Path) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if done == 16 * 6:
            raise KeyboardInterrupt

    settings = how(steps=10, checkpoint_seconds=0, refit_head=True, lora_rank=4)
    given = {"limit": 100, "settings": settings}
    whole = secateur.heal(secateur.load(saved), "digits/train", **given)
    with pytest.raises(KeyboardInterrupt):
        secateur.heal(secateur.load(saved), "digits/train", folder=tmp_path, progress=kill, **given)
    found = secateur.heal(secateur.load(saved), "digits/train", folder=tmp_path, **given)
    assert found.report.resumed_at == 5
    assert same(found.model, whole.model)
    other = given | {"limit": 90}
    with pytest.raises(UserError, match=r"images.count: 80 → 72; images.fingerprint"):
        secateur.heal(secateur.load(saved), "digits/train", folder=tmp_path, **other)


def test_the_dense_model_must_be_known(dense: nn.Module, cut: Result, images: Tensor) -> None:
    with pytest.raises(UserError, match="there is no model to learn from: name one"):
        secateur.heal(cut, images, settings=how())


def test_another_reference_is_noted(saved: Path) -> None:
    other = secateur.load("digits_vit")
    with torch.no_grad():
        other.head.bias.add_(1)
    found = secateur.heal(
        secateur.load(saved), "digits/train", reference=other, limit=40, settings=how(steps=1)
    )
    assert found.notes == ["The reference is not the model that was pruned: its outputs differ."]
    alike = secateur.heal(
        secateur.load(saved),
        "digits/train",
        reference="digits_vit",
        limit=40,
        settings=how(steps=1),
    )
    assert alike.notes == []


def test_a_reference_with_the_bases_name_is_built_like_it(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    sizes = {"num_classes": 7, "img_size": 64}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    given = {"checkpoint": tmp_path / "w.safetensors", **sizes}
    loaded = secateur.load("timm:vit_tiny_patch16_224", mean=0.4, **given)
    found = open_reference(loaded, "timm:vit_tiny_patch16_224", tmp_path / "w.safetensors")
    assert found.head.out_features == 7 and found.patch_embed.img_size == (64, 64)
    assert found.pretrained_cfg["mean"] == (0.4, 0.4, 0.4)


def test_wrong_evaluation_images_are_refused_before_training(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("secateur.training.session.fit_", begin)
    with pytest.raises(UserError, match="no images at"):
        secateur.heal(
            secateur.load(saved),
            "digits/train",
            limit=40,
            settings=how(),
            eval_images=str(tmp_path / "none"),
        )
    with pytest.raises(UserError, match="refit_head needs held-out images"):
        secateur.heal(
            secateur.load(saved),
            "digits/train",
            limit=40,
            settings=how(refit_head=True, held_out=0.0),
        )
    with pytest.raises(UserError, match="too few to hold out"):
        secateur.heal(secateur.load(saved), "digits/train", limit=2, settings=how())
