"""Scores that start from the plans of `spectral`: their projection is about its plan."""

import pytest
import torch
from torch import nn

import secateur
from secateur.data.batches import as_batches
from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.masks.granularity import granularities
from secateur.masks.masks import masks_of
from secateur.masks.pricing import exact_cost, left_of_masks
from secateur.masks.projection import project
from secateur.masks.request import LearnRequest
from secateur.masks.settings import LearnSettings
from secateur.masks.start.from_plans import spectral_needs, spectral_worths
from secateur.masks.task import check_learning, pricing_of, resolve_learn
from secateur.measurement.accuracy import predict, summarize
from secateur.models.family import read
from secateur.models.host import host_of
from secateur.statistics import Statistics, observe

DIGITS = secateur.load("digits_vit")
IMAGES = as_batches(
    open_images("digits/train", Preprocessing.of(DIGITS), limit=256, num_classes=10), 32
)


def started(sharing: str, percent: int):  # type: ignore[no-untyped-def]
    host = host_of(DIGITS)
    asked = LearnRequest(budget=f"{percent}% params", sharing=sharing)
    task = resolve_learn(check_learning(asked), host)
    pricing = pricing_of(task, host.anatomy, None)
    needs = spectral_needs(task.gates)
    statistics = observe(DIGITS, IMAGES, needs) if needs else Statistics(images=0, tokens=0)
    return task, pricing, spectral_worths(host, task.gates, pricing, statistics, IMAGES)


@pytest.mark.parametrize("sharing", granularities.names())
def test_every_unit_has_a_worth_in_range(sharing: str) -> None:
    task, pricing, worths = started(sharing, 60)
    assert worths.keys() == {gate.name for gate in task.gates}
    for gate in task.gates:
        assert worths[gate.name].shape == (gate.rows, gate.units)
        assert worths[gate.name].abs().max() <= 1
    flat = torch.cat([w.flatten() for w in worths.values()])
    assert flat.std() > 0.1
    masks = masks_of(task.gates, project(task.gates, worths, pricing))
    assert exact_cost(pricing, left_of_masks(pricing, masks)) <= pricing.limit


@pytest.mark.parametrize("percent", [70, 40, 30])
def test_the_projection_is_about_the_plan_of_the_engine(percent: int) -> None:
    task, pricing, worths = started("common_count", percent)
    masks = masks_of(task.gates, project(task.gates, worths, pricing))
    ours = left_of_masks(pricing, masks).shapes
    plan = secateur.prune(
        DIGITS, IMAGES, f"{percent}% params", groups=["qk", "vo", "hidden"]
    ).plan.shapes
    for branch in read(DIGITS).branches:
        mine, theirs = ours[branch.id], plan[branch.id]
        assert mine is not None and theirs is not None
        for group in ("qk", "vo") if branch.kind == "attention" else ("hidden",):
            dense = branch.shape.size(group)
            assert abs(mine.size(group) - theirs.size(group)) <= max(8, 0.15 * dense)


def test_it_beats_taylor_before_any_training() -> None:
    top1 = {}
    test = open_images("digits/test", Preprocessing.of(DIGITS), num_classes=10)
    batches = list(torch.utils.data.DataLoader(test, 225))

    def score(model: nn.Module) -> float:
        return summarize(predict(model, batches)).top1

    for criterion in ("taylor", "spectral"):
        still = LearnSettings(
            steps=1, search_share=0.0, checks=0, held_out=0.0, ema=None, batch_size=8, observe=256
        )
        rate = still.optimizer.model_copy(update={"learning_rate": 1e-9})
        found = secateur.learn(
            DIGITS,
            "digits/train",
            "10% params",
            criterion=criterion,
            settings=still.model_copy(update={"optimizer": rate}),
        )
        top1[criterion] = score(found.model)
    assert top1["spectral"] > top1["taylor"] + 3
    assert top1["spectral"] > 90


def test_too_few_images_to_measure_on_are_named() -> None:
    few = LearnSettings(steps=2, held_out=0.0, checks=0, observe=2, batch_size=4)
    with pytest.raises(UserError, match="too few"):
        secateur.learn(DIGITS, "digits/train", "50% params", settings=few)
