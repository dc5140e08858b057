"""Scores learn in the training loop, under a budget, and go on from a checkpoint."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.masks.estimator import estimators
from secateur.masks.granularity import gates_of, granularities
from secateur.masks.masks import masks_of
from secateur.masks.pricing import exact_cost, left_of_masks
from secateur.masks.projection import project
from secateur.masks.strategies.lagrangian import Lagrangian
from secateur.masks.strategies.projected import Projected
from secateur.masks.strategy import SearchStrategy, WaySettings, strategies
from secateur.models.family import read
from secateur.training.lesson import Hook, Lesson, Moment
from secateur.training.loop import FitReport, fit_
from secateur.training.settings import OptimizerSettings, TrainSettings
from secateur.zoo import digits_vit
from tests.masks.cases import bank_of, pricing_of, scope_of

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


def search_for(
    model: nn.Module,
    share: float,
    form: str = "straight_through",
    sharing: str = "common_count",
    way: str = "lagrangian",
) -> SearchStrategy:
    anatomy = read(model)
    gates = gates_of(granularities.get(sharing), scope_of(model, anatomy))
    return strategies.get(way).make(bank_of(gates, form), pricing_of(anatomy, share), WaySettings())


def lagrangian(model: nn.Module, share: float, *more: str) -> Lagrangian:
    found = search_for(model, share, *more)
    assert isinstance(found, Lagrangian)
    return found


def run(
    model: nn.Module, way: SearchStrategy, folder: Path | None = None, *hooks: Hook
) -> FitReport:
    with way.bank.attached(model):
        return fit_(
            model, images(), labels, settings(), labelled=True, classes=10, folder=folder,
            hooks=[way, *hooks],
        )  # fmt: skip


@pytest.mark.parametrize("form", estimators.names())
def test_the_search_closes_gates_down_to_the_budget(form: str) -> None:
    model = digits_vit()
    search = lagrangian(model, 0.5, form)
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = run(model, search)
    assert report.steps == STEPS
    assert report.history[0]["kept_percent"] == pytest.approx(100)
    assert report.history[-1]["target_percent"] == pytest.approx(50)
    assert 30 < report.history[-1]["kept_percent"] < 90
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    kept = project(search.bank.gates, search.bank.margins(), search.pricing)
    shapes = left_of_masks(search.pricing, masks_of(search.bank.gates, kept))
    cost = exact_cost(search.pricing, shapes)
    assert 0.495 * search.pricing.dense <= cost <= search.pricing.limit


class Stop(Hook):
    """Ends a run in the middle."""

    def after_step(self, moment: Moment) -> None:
        if moment.step == STEPS // 2 + 3:
            raise KeyboardInterrupt


def test_a_stopped_search_goes_on_to_the_same_masks(tmp_path: Path) -> None:
    whole, parts = digits_vit(), digits_vit()
    first = lagrangian(whole, 0.4)
    run(whole, first)
    with pytest.raises(KeyboardInterrupt):
        run(parts, lagrangian(parts, 0.4), tmp_path, Stop())
    second = lagrangian(parts, 0.4)
    report = run(parts, second, tmp_path, Hook())
    assert report.resumed_at is not None and 0 < report.resumed_at < STEPS
    assert second.controller.lam == first.controller.lam
    for one, other in zip(first.bank.parameters(), second.bank.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_cost_in_the_loss_is_the_counted_one() -> None:
    model = digits_vit()
    search = lagrangian(model, 0.3, "hard_concrete", "independent")
    with torch.no_grad():
        for p in search.bank.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 3)
    search.controller.lam, search.controller.share = 2.0, 1.0
    search.before_step(Moment(step=0, share=0.0))
    shapes = left_of_masks(search.pricing, search.bank.masks())
    share = exact_cost(search.pricing, shapes) / search.pricing.dense
    lesson = Lesson(images_BCHW=torch.zeros(0))
    penalty = search.terms(model, lesson, Moment(step=0, share=0.0))["size"].detach()
    gap = share - 0.3
    assert gap > 0
    assert float(penalty) == pytest.approx(2 * gap + 5 * gap**2, rel=1e-5)


@pytest.mark.parametrize("way", strategies.names())
def test_every_way_ends_in_margins_that_can_be_projected(way: str, tmp_path: Path) -> None:
    model = digits_vit()
    search = search_for(model, 0.4, way=way)
    report = run(model, search, tmp_path)
    pricing = pricing_of(read(digits_vit()), 0.4)
    kept = project(search.bank.gates, search.margins(), pricing)
    cost = exact_cost(pricing, left_of_masks(pricing, masks_of(search.bank.gates, kept)))
    assert 0.395 * pricing.dense <= cost <= pricing.limit
    # A finished search gives masks and weights at once when it is asked for again.
    again = digits_vit()
    other = search_for(again, 0.4, way=way)
    assert run(again, other, tmp_path).steps == report.steps
    margins = search.margins()
    assert all(torch.equal(value, margins[name]) for name, value in other.margins().items())
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_a_schedule_meets_its_target_at_every_step() -> None:
    model = digits_vit()
    search = search_for(model, 0.4, way="schedule")
    costs: list[float] = []
    pricing = pricing_of(read(digits_vit()), 0.4)

    class Look(Hook):
        def after_step(self, moment: Moment) -> None:
            shapes = left_of_masks(pricing, search.bank.masks())
            costs.append(exact_cost(pricing, shapes) / pricing.dense)

    run(model, search, None, Look())
    assert costs[0] > 0.95 and 0.39 < costs[-1] <= 0.4
    assert max(costs[40:]) <= 0.4


def test_units_fade_and_are_gone_when_a_progressive_search_ends() -> None:
    model = digits_vit()
    search = search_for(model, 0.4, way="progressive")
    x, _ = images(32)
    run(model, search)
    kept = project(search.bank.gates, search.margins(), pricing_of(read(digits_vit()), 0.4))
    search.before_step(Moment(step=60, share=1.0))
    with torch.no_grad(), search.bank.attached(model):
        faded = model.train()(x)
        search.bank.freeze(kept)
        assert torch.equal(model.eval()(x), faded)


def test_group_lasso_takes_the_same_off_the_norm_of_every_unit() -> None:
    model = digits_vit()
    search = search_for(model, 0.4, sharing="per_head", way="group_lasso")
    search.terms(model, Lesson(images_BCHW=torch.zeros(0)), Moment(step=0, share=0.0))

    def norms() -> Tensor:
        mlp = model.blocks[0].mlp
        squares = mlp.fc1.weight.square().sum(1) + mlp.fc1.bias.square()
        return (squares + mlp.fc2.weight.square().sum(0)).sqrt().detach()

    before = norms()
    search.after_step(Moment(step=1, share=0.25))
    pull = 0.25 * WaySettings().lasso
    expected = (before - pull * before.mean()).clamp(min=0)
    assert torch.allclose(norms(), expected, atol=1e-5)
    found = search.margins()["blocks.0.mlp.hidden"][0]
    assert torch.allclose(found, expected / before.mean(), atol=1e-5)
    assert float(expected.min()) < float(expected.max())


def test_projected_masks_meet_the_target_and_stay_to_the_end() -> None:
    model = digits_vit()
    search = search_for(model, 0.4, way="projected")
    pricing = pricing_of(read(digits_vit()), 0.4)
    held: list[dict[str, Tensor]] = []
    calls: list[int] = []

    def takeover(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        calls.append(sum(int((before[n] & ~after[n]).sum()) for n in after))

    search.takeover = takeover

    class Look(Hook):
        def after_step(self, moment: Moment) -> None:
            held.append(dict(search.bank.kept()))

    run(model, search, None, Look())
    shares = [
        exact_cost(pricing, left_of_masks(pricing, masks_of(search.bank.gates, kept)))
        / pricing.dense
        for kept in held
    ]
    assert shares[0] == pytest.approx(1) and shares[-1] <= 0.4 < shares[5]
    assert len(calls) == 11 and sum(calls) > 0
    last = held[-1]
    assert all(torch.equal(held[-10][name], last[name]) for name in last), "frozen at the end"
    kept = project(search.bank.gates, search.margins(), pricing)
    assert all(torch.equal(kept[name], last[name]) for name in last), "what was trained is removed"


def test_steps_are_by_price_and_keep_the_order_of_what_has_no_gradient() -> None:
    model = digits_vit()
    search = search_for(model, 0.5, way="projected")
    assert isinstance(search, Projected) and search.optimizer is not None
    gates = search.bank.gates
    search.before_step(Moment(step=0, share=0.0))
    before = [search.bank.scores(n)["score"].detach().clone() for n, _ in enumerate(gates)]
    for number, gate in enumerate(gates):
        price = search._prices_now()[gate.name]
        score = search.bank.scores(number)["score"]
        # Units of one price per unit of gradient, but for the first, which has ten times as much.
        grad = price.clone()
        grad.view(-1)[0] *= 10
        grad.view(-1)[1] = 0
        score.grad = grad
    search.optimizer.param_groups[0]["lr"] = 0.1
    search.optimizer.step()
    moves = []
    for number, _ in enumerate(gates):
        moved = before[number] - search.bank.scores(number)["score"].detach()
        assert moved.view(-1)[1] == 0
        moves.append(moved.view(-1)[2:])
        assert moved.view(-1)[0] == pytest.approx(min(10 * float(moves[-1][0]), 0.3), rel=1e-4)
    flat = torch.cat(moves)
    assert torch.allclose(flat, flat[:1].expand_as(flat), rtol=1e-4), "no gate moves faster"


def test_soft_gates_are_not_held() -> None:
    model = digits_vit()
    assert isinstance(search_for(model, 0.5, "hard_concrete", way="projected"), Lagrangian)
