"""The score that is told is that of the saved weights, on images whose origin is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur
from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.masks.settings import LearnSettings
from secateur.training.distillation.teacher import teacher_for
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from secateur.training.images.held_out import HeldOut
from tests.contract.test_refusals import Untouched
from tests.hosts import build, images_for

QUIET: dict[str, Any] = {"steps": 8, "batch_size": 16, "trackers": (), "ema": None}


def how(rate: float = 1e-3, **changes: Any) -> HealSettings:
    return HealSettings.model_validate({**QUIET, "optimizer": {"learning_rate": rate}, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "small"
    model = secateur.load("digits_vit")
    secateur.prune(model, "digits/train", "30% hidden", preset="energy", limit=100).save(out)
    return out


def kl_on_test(model: nn.Module) -> float:
    """KL from the dense model on all images for evaluation."""
    dense = secateur.load("digits_vit")
    items = open_images("digits/test", Preprocessing.of(dense))
    judge = HeldOut(items=items, labels=False, teacher=teacher_for(model, dense))
    with torch.no_grad():
        total, count = judge(model.eval(), 0, 1)["kl"]
    return total / count


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_score_is_that_of_the_saved_weights(saved: Path, keep: str) -> None:
    ruinous = how(rate=0.3, keep=keep, distil={"layerwise": 0.0})
    found = secateur.heal(
        secateur.load(saved),
        "digits/train",
        limit=100,
        settings=ruinous,
        eval_images="digits/test",
        judge="eval_data",
    )
    judged, report = found.judged, found.report
    assert judged is not None and report.images == 100
    assert judged.measure == "error" and judged.origin == "evaluation"
    accuracy = found.accuracy["pruned"]
    assert accuracy.top1 == pytest.approx(100 - judged.saved)
    assert report.saved is not None and report.saved.values["kl"] == pytest.approx(
        kl_on_test(found.model), rel=1e-4
    )
    warned = [note for note in found.notes if "worse than those before training" in note]
    if keep == "last":
        assert judged.saved > judged.before and report.best_step == 8
        assert len(warned) == 1 and "lower learning rate" in warned[0]
    else:
        assert judged.saved <= judged.before and not warned
    assert found.record()["judged"]["saved"] == judged.saved


def test_whose_the_held_out_images_are(saved: Path) -> None:
    def origin(images: object, limit: int | None, model: Any = None) -> tuple[str, str]:
        found = secateur.heal(
            model or secateur.load(saved),
            images,
            reference="digits_vit",
            limit=limit,
            settings=how(rate=0.3, distil={"layerwise": 0.0}),
        )
        assert found.judged is not None and found.judged.worse
        return found.judged.origin, found.notes[-1]

    same, note = origin("digits/train", 100)
    assert same == "same"
    assert "among the calibration images" in note and "--judge eval_data" in note
    assert origin("digits/train", 200)[0] == "source"
    new, note = origin("digits/test", 100)
    assert new == "new" and "--judge" not in note
    model = secateur.load("digits_vit")
    assert origin(images_for(model, 60), None)[0] == "unknown"
    cut = secateur.prune(model, "digits/train", "30% hidden", preset="energy", limit=100)
    assert origin("digits/train", 100, cut)[0] == "same"


def test_nothing_is_said_of_what_nobody_judged(saved: Path) -> None:
    found = secateur.heal(
        secateur.load(saved), "digits/train", limit=40, settings=how(held_out=0.0)
    )
    assert found.judged is None and found.record()["judged"] is None


def test_images_for_evaluation_judge_fine_tuning() -> None:
    model = build("vit")
    x, labels = images_for(model, 40), torch.arange(40) % 10
    settings = FineTuneSettings.model_validate(QUIET)
    found = secateur.train(
        model, (x, labels), settings=settings, eval_images=(x, labels), judge="eval_data"
    )
    assert found.report.images == 40 and found.judged is not None
    assert found.accuracy["pruned"].top1 == pytest.approx(100 - found.judged.saved)
    held = secateur.train(
        model, (x, labels), settings=settings.model_copy(update={"held_out": 0.2})
    )
    assert held.judged is not None and held.judged.origin == "training"


def test_a_judge_without_images_is_refused(saved: Path) -> None:
    model = secateur.load(saved)
    with pytest.raises(UserError, match="images for evaluation are to judge"):
        secateur.heal(model, Untouched(), judge="eval_data")
    with pytest.raises(UserError, match=r"unknown judge 'held'.*held_out"):
        secateur.heal(model, Untouched(), judge="held")


def test_learning_masks_is_judged_by_images_for_evaluation() -> None:
    asked = {"settings": LearnSettings(steps=12, batch_size=16, checks=1, observe=64), "limit": 100}
    dense = secateur.load("digits_vit")
    with pytest.raises(UserError, match="are to judge the weights, but there are none"):
        secateur.learn(dense, "digits/train", "40% params", judge="eval_data", **asked)
    found = secateur.learn(
        dense,
        "digits/train",
        "40% params",
        judge="eval_data",
        eval_images="digits/test",
        **asked,
    )
    tuned = found.phases["tune"]
    # None of the images to learn is held out, and the score is that of the accuracy told.
    assert tuned.images == 100 and tuned.saved is not None
    assert found.result.accuracy is not None
    assert 100 - tuned.saved.value == pytest.approx(found.result.accuracy.top1)
