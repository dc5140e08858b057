"""Outputs that are no classes: one number, several labels, features, tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur.data.targets import multi_hot
from secateur.errors import UserError
from secateur.statistics.divergence import LOSSES, degradation, loss_for, per_image, spread
from secateur.training.heal_and_train import HealSettings
from tests.contract.test_refusals import Untouched
from tests.hosts import images_for, randomise_, vit

QUICK: dict[str, Any] = {"effort": "quick", "exact_tail": False}


def host(**changes: Any) -> nn.Module:
    model = vit(**changes)
    randomise_(model, seed=1)
    return model.eval()


@pytest.fixture(scope="module")
def number() -> nn.Module:
    """A model of one output."""
    return host(num_classes=1)


@pytest.fixture(scope="module")
def images(number: nn.Module) -> Tensor:
    return images_for(number, 64)


@torch.no_grad()
def share_lost(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    wanted = dense(images)
    return float((model(images) - wanted).square().mean() / wanted.var(0, correction=0).mean())


def test_each_kind_of_outputs_has_its_loss() -> None:
    assert [loss_for(n) for n in (0, 1, 2, 10)] == ["cosine", "mse", "kl", "kl"]
    assert loss_for(10, multi_label=True) == "bce" and loss_for(1, multi_label=True) == "mse"
    assert [loss_for(10, name) for name in LOSSES] == list(LOSSES)
    assert loss_for(1, "bce") == "bce"
    for outputs, name in ((1, "kl"), (1, "cosine"), (0, "kl"), (0, "bce")):
        with pytest.raises(UserError, match=f"loss '{name}'"):
            loss_for(outputs, name)
    with pytest.raises(UserError, match=r"unknown loss 'msee'.*mse"):
        loss_for(10, "msee")


def test_losses_are_what_they_are_called() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, changed = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    p, q = dense.sigmoid(), changed.sigmoid()
    binary = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(per_image(dense, changed, "bce"), binary.sum(1))
    torch.testing.assert_close(per_image(dense, changed, "mse"), (dense - changed).square().sum(1))
    angles = 1 - torch.cosine_similarity(dense, changed, dim=1)
    torch.testing.assert_close(per_image(dense, changed, "cosine"), angles)
    tokens = [torch.stack([x, x], dim=1) for x in (dense, changed)]
    for loss in LOSSES:
        torch.testing.assert_close(per_image(*tokens, loss), per_image(dense, changed, loss))
        assert float(per_image(dense, dense, loss).abs().max()) < 1e-12
    assert spread(dense, "mse") == pytest.approx(float(dense.var(0, correction=0).sum()))
    assert spread(dense[:1], "mse") == pytest.approx(float(dense[0].square().sum()))
    one = degradation(dense[:, :1], changed[:, :1], 1)
    lost = (dense - changed)[:, 0].square().mean() / dense[:, 0].var(correction=0)
    assert one.divergence == pytest.approx(float(lost), rel=1e-5) and one.agreement is None


def test_one_output_does_not_make_every_layer_free(number: nn.Module, images: Tensor) -> None:
    found = secateur.prune(number, images, "75% macs", **QUICK)
    assert found.plan.predicted_loss > 0
    blind = secateur.prune(number, images, "75% macs", preset="random", exact_tail=False)
    fresh = images_for(number, 64, seed=3)
    assert share_lost(found.model, number, fresh) < 0.6 * share_lost(blind.model, number, fresh)
    weighed = [m for m in found.candidates if m.group in ("branch", "block")]
    assert all(max(one.losses) > 0 for one in weighed)


@pytest.mark.parametrize("preset", ["taylor", "nvit", "snapvit", "evopress", "greedy_drop"])
@pytest.mark.parametrize(
    "changes",
    [{"num_classes": 1}, {"num_classes": 0}, {"num_classes": 0, "global_pool": ""}],
    ids=["number", "features", "tokens"],
)
def test_presets_weigh_outputs_that_are_no_classes(preset: str, changes: dict[str, Any]) -> None:
    model = host(**changes)
    found = secateur.prune(model, images_for(model, 32), "75% macs", preset=preset, **QUICK)
    assert found.plan.predicted_loss > 0


@pytest.mark.parametrize("changes", [{"num_classes": 0, "global_pool": ""}, {"num_classes": 1}])
def test_every_stage_of_the_default_takes_them(changes: dict[str, Any]) -> None:
    model = host(**changes)
    x = images_for(model, 40)
    found = secateur.prune(model, x, "75% macs", **QUICK)
    assert share_lost(found.model, model, x) < 1
    record = secateur.analyze(model, x, latency=False).record
    assert record["unit"] == ("of the variance" if changes["num_classes"] else "1 − cosine")
    assert all(
        layer["degradation"] > 0 and layer["agreement"] is None for layer in record["layers"]
    )


def test_scores_of_classes_for_every_token_are_refused() -> None:
    model = host(global_pool="")
    for verb in (lambda m, x: secateur.prune(m, x, "75% macs"), secateur.analyze):
        with pytest.raises(UserError, match="scores of its classes for every token"):
            verb(model, Untouched())


@pytest.mark.parametrize(
    ("preset", "words"),
    [("sleb", "compares classes"), ("blockpruner", "compares classes"), ("finercut", "directions")],
)
def test_presets_that_cannot_see_one_output_are_refused(
    number: nn.Module, preset: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        secateur.prune(number, Untouched(), "drop 1 attention", preset=preset)


def test_a_named_loss_decides(images: Tensor) -> None:
    model = host()
    plans = {
        loss: secateur.prune(model, images, "75% macs", preset="evopress", loss=loss, **QUICK).plan
        for loss in LOSSES
    }
    assert len({plan.predicted_loss for plan in plans.values()}) == len(LOSSES)
    record = secateur.analyze(model, images, latency=False, loss="bce").record
    assert record["loss"] == "bce" and record["unit"] == "nats"
    with pytest.raises(UserError, match="unknown loss"):
        secateur.prune(model, Untouched(), "75% macs", loss="entropy")
    with pytest.raises(UserError, match="loss 'kl' is 0"):
        secateur.prune(host(num_classes=1), Untouched(), "75% macs", loss="kl")


def test_a_loss_that_sees_nothing_is_an_error(images: Tensor) -> None:
    sure = host()
    with torch.no_grad():
        sure.head.bias[3] = 1e6
    for preset in ("spectral", "greedy_drop"):
        with pytest.raises(UserError, match="none has a loss above 0"):
            secateur.prune(sure, images, "75% macs", preset=preset, **QUICK)


def test_multi_hot_targets_are_recognised(images: Tensor) -> None:
    rows = (torch.rand(64, 10, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    whole = TensorDataset(images, rows)
    for given in ((images, rows), whole, DataLoader(whole, 8), [(images[:8], rows[:8])]):
        assert multi_hot(given)
    classes = torch.arange(64)
    plain = TensorDataset(images, classes)
    boxes = TensorDataset(images, 17 * rows)
    for given in (images, (images, classes), plain, DataLoader(plain, 8), boxes, "folder/", []):
        assert not multi_hot(given)


def test_multi_hot_targets_choose_the_loss_and_hinder_nothing(images: Tensor) -> None:
    model = host()
    rows = (torch.rand(64, 10, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    loader = DataLoader(TensorDataset(images, rows), 16)
    plain = DataLoader(TensorDataset(images), 16)
    found = secateur.prune(model, loader, "75% macs", preset="evopress", **QUICK)
    named = secateur.prune(model, plain, "75% macs", preset="evopress", loss="bce", **QUICK)
    assert found.plan == named.plan
    assert secateur.analyze(model, loader, latency=False).record["loss"] == "bce"
    how = HealSettings.model_validate({"steps": 2, "batch_size": 16, "trackers": (), "ema": None})
    healed = secateur.heal(found, loader, reference=model, settings=how)
    assert list(healed.report.scores[0].values) == ["bce"]


def test_healing_brings_one_output_nearer(number: nn.Module, images: Tensor) -> None:
    cut = secateur.prune(number, images, "50% hidden, drop 1 attention", preset="magnitude")
    how = HealSettings.model_validate(
        {"steps": 40, "batch_size": 16, "trackers": (), "ema": None}
        | {"optimizer": {"learning_rate": 1e-3}}
    )
    found = secateur.heal(cut, images, reference=number, settings=how)
    assert list(found.report.scores[0].values) == ["mse"]
    fresh = images_for(number, 64, seed=9)
    assert share_lost(found.model, number, fresh) < 0.8 * share_lost(cut.model, number, fresh)
    polished = secateur.prune(number, images, "75% macs", polish="5 steps", **QUICK)
    assert polished.polish is not None and polished.polish.loss == "mse"
    assert "of the variance" in polished.notes[-1]


def test_one_output_has_no_accuracy(number: nn.Module, images: Tensor) -> None:
    cut = secateur.prune(number, images, "75% macs", preset="magnitude")
    found = secateur.evaluate(cut.model, images, reference=number)
    assert found.top1 is None and found.agreement is None and found.kl is None
    assert found.squared_error == pytest.approx(share_lost(cut.model, number, images), rel=1e-3)
    labelled = secateur.evaluate(number, (images, torch.zeros(64, dtype=torch.int64)))
    assert labelled.top1 is None and labelled.n == 64


def test_features_have_no_accuracy_to_measure_after_the_work(images: Tensor) -> None:
    model = host(num_classes=0)
    with pytest.raises(UserError, match="no classifier, so there is no accuracy"):
        secateur.prune(model, Untouched(), "75% macs", eval_images=images)
