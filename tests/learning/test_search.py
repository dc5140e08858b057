"""Scores learn in the training loop, under a budget, and go on from a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.anatomy.family import read
from secateur.healing.lesson import Hook, Lesson, Moment
from secateur.healing.loop import FitReport, fit_
from secateur.healing.settings import OptimizerSettings, TrainSettings
from secateur.learning.controller import Controller, ControllerSettings
from secateur.learning.form import forms
from secateur.learning.masks import masks_of
from secateur.learning.pricing import exact_cost, shapes_of_masks
from secateur.learning.projection import project
from secateur.learning.search import Search
from secateur.learning.sharing import gates_of, sharings
from secateur.zoo import digits_vit
from tests.learning.cases import bank_of, pricing_of, scope_of

STEPS = 60


def images(count: int = 256) -> tuple[Tensor, Tensor]:
    from secateur.data.digits import load_digits_split
    from secateur.zoo.train_digits import normalize

    x, y = load_digits_split("train")
    return normalize(x[:count]), torch.from_numpy(y[:count])


def labels(model: nn.Module, lesson: Lesson, moment: Moment) -> dict[str, Tensor]:
    assert lesson.labels_B is not None
    return {"labels": nn.functional.cross_entropy(model(lesson.images_BCHW), lesson.labels_B)}


def settings(steps: int = STEPS, **changes: object) -> TrainSettings:
    plain = {"batch_size": 16, "ema": None, "checks": 0, "checkpoint_seconds": 0, "log_every": 5}
    return TrainSettings(
        steps=steps, optimizer=OptimizerSettings(learning_rate=1e-4), **{**plain, **changes}
    )


def search_for(model: nn.Module, share: float, form: str, sharing: str = "common_count") -> Search:
    anatomy = read(model)
    gates = gates_of(sharings.get(sharing), scope_of(model, anatomy))
    control = Controller(budget=share, settings=ControllerSettings())
    return Search(bank_of(gates, form), pricing_of(anatomy, share), control)


def run(model: nn.Module, search: Search, folder: Path | None = None, *hooks: Hook) -> FitReport:
    with search.bank.attached(model):
        return fit_(
            model, images(), labels, settings(), labelled=True, classes=10, folder=folder,
            hooks=[search, *hooks],
        )  # fmt: skip


@pytest.mark.parametrize("form", forms.names())
def test_the_search_closes_gates_down_to_the_budget(form: str) -> None:
    model = digits_vit()
    search = search_for(model, 0.5, form)
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = run(model, search)
    assert report.steps == STEPS
    assert report.history[0]["kept_percent"] == pytest.approx(100)
    assert report.history[-1]["target_percent"] == pytest.approx(50)
    assert 30 < report.history[-1]["kept_percent"] < 90
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    kept = project(search.bank.gates, search.bank.margins(), search.pricing)
    shapes = shapes_of_masks(search.pricing, masks_of(search.bank.gates, kept))
    cost = exact_cost(search.pricing, shapes)
    assert 0.495 * search.pricing.dense <= cost <= search.pricing.limit


class Stop(Hook):
    """Ends a run in the middle."""

    def after_step(self, moment: Moment) -> None:
        if moment.step == STEPS // 2 + 3:
            raise KeyboardInterrupt


def test_a_stopped_search_goes_on_to_the_same_masks(tmp_path: Path) -> None:
    whole, parts = digits_vit(), digits_vit()
    first = search_for(whole, 0.4, "straight_through")
    run(whole, first)
    with pytest.raises(KeyboardInterrupt):
        run(parts, search_for(parts, 0.4, "straight_through"), tmp_path, Stop())
    second = search_for(parts, 0.4, "straight_through")
    report = run(parts, second, tmp_path)
    assert report.resumed_at is not None and 0 < report.resumed_at < STEPS
    assert second.controller.lam == first.controller.lam
    for one, other in zip(first.bank.parameters(), second.bank.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_cost_in_the_loss_is_the_counted_one() -> None:
    model = digits_vit()
    search = search_for(model, 0.3, "hard_concrete", "independent")
    with torch.no_grad():
        for p in search.bank.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 3)
    search.controller.lam, search.controller.share = 2.0, 1.0
    search.before_step(Moment(step=0, share=0.0))
    shapes = shapes_of_masks(search.pricing, search.bank.masks())
    share = exact_cost(search.pricing, shapes) / search.pricing.dense
    lesson = Lesson(images_BCHW=torch.zeros(0))
    penalty = search.terms(model, lesson, Moment(step=0, share=0.0))["size"].detach()
    gap = share - 0.3
    assert gap > 0
    assert float(penalty) == pytest.approx(2 * gap + 5 * gap**2, rel=1e-5)
