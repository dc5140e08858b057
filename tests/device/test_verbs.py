"""Every verb works on another device, both families, and says what it says on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import secateur
from secateur.devices import present_devices
from secateur.errors import UserError
from secateur.masks.estimator import estimators
from secateur.masks.granularity import granularities
from secateur.masks.settings import LearnSettings
from secateur.masks.strategy import strategies
from secateur.surgery.repair import Repair
from secateur.training.heal_and_train import FineTuneSettings, HealSettings
from secateur.verbs.load import open_data
from secateur.verbs.metrics import evaluate_metrics
from tests.device.hosts import FAMILIES, assert_same, images_of, labels_of, model_of, on

CPU = torch.device("cpu")
QUIET: dict[str, Any] = {"steps": 2, "batch_size": 8, "trackers": (), "held_out": 0.25}
SEARCH: dict[str, Any] = {"steps": 4, "batch_size": 8, "checks": 1, "observe": 8, "held_out": 0.25}
TRAINED = 12
FINE: dict[str, Any] = {"align": {"hidden": 2}, "minimum": {"hidden": 2}}
LESSONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "head": {"refit_head": True},
    "lora": {"lora_rank": 2, "ema": None},
    "muon": {"optimizer": {"name": "muon"}},
    "mixup": {"augment": {"mixup": 0.2}},
}
HEALED = [(lesson, "vit") for lesson in LESSONS] + [("plain", FAMILIES[1])]
LEARNED: list[dict[str, str]] = [
    *({"sharing": name} for name in granularities.names()),
    *({"gates": name} for name in estimators.names()),
    *({"way": name} for name in strategies.names()),
    {"criterion": "none"},
    {"criterion": "taylor"},
]


def shrunk(family: str) -> nn.Module:
    model = model_of(family)
    return secateur.prune(model, images_of(model), "50% hidden", preset="magnitude", **FINE).model


def near(one: object, other: object, device: torch.device) -> bool:
    """Whether two records agree, floats to rounding; of a real device only the form counts."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(near(one[k], other[k], device) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(lambda a, b: near(a, b, device), one, other))
    if isinstance(one, float) and isinstance(other, float):
        return device.type != "standin" or one == pytest.approx(other, rel=1e-3, abs=1e-4)
    return device.type != "standin" or one == other


@pytest.mark.parametrize(("lesson", "family"), HEALED)
def test_heal(lesson: str, family: str, device: torch.device) -> None:
    dense, small = model_of(family), shrunk(family)
    images = images_of(dense, TRAINED)
    settings = HealSettings.model_validate(QUIET | LESSONS[lesson])
    pair = (images, labels_of(images))
    plain = secateur.heal(
        small, pair, reference=dense, labels=True, settings=settings, device="cpu"
    )
    moved = secateur.heal(small.to(device), pair, reference=dense, labels=True, settings=settings)
    assert on(dense, CPU), "the reference stays where it was"
    if device.type == "standin":
        assert_same(moved.model, plain.model, device)


def test_heal_where_it_is_asked_to(device: torch.device) -> None:
    dense, small = model_of("vit"), shrunk("vit")
    seen: list[torch.device] = []

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            seen.append(args[0].device)

    small.get_submodule("blocks.0.norm1").register_forward_pre_hook(note)
    found = secateur.heal(
        small,
        images_of(dense, TRAINED),
        reference=dense,
        settings=HealSettings.model_validate(QUIET),
        device=str(device),
    )
    assert on(found.model, CPU) and set(seen) == {device}


@pytest.mark.parametrize("family", FAMILIES)
def test_train(family: str, device: torch.device, tmp_path: Path) -> None:
    model = model_of(family)
    images = images_of(model, TRAINED)
    settings = FineTuneSettings.model_validate(QUIET)
    pair = (images, labels_of(images))
    plain = secateur.train(model, pair, settings=settings, device="cpu")
    model.to(device)
    moved = secateur.train(model, pair, settings=settings, folder=tmp_path / "run")
    again = secateur.train(model, pair, settings=settings, folder=tmp_path / "run")
    assert on(again.model, device) and again.report.resumed_at == again.report.steps
    if device.type == "standin":
        assert_same(moved.model, plain.model, device)
        assert_same(again.model, plain.model, device)


@pytest.mark.parametrize("how", LEARNED, ids=lambda how: "-".join(next(iter(how.items()))))
def test_learn(how: dict[str, str], device: torch.device) -> None:
    given = dict(how)
    settings = LearnSettings(**SEARCH, **({"search": given.pop("way")} if "way" in how else {}))
    model = model_of("vit").to(device)
    images = images_of(model_of("vit"), TRAINED)
    pair = (images, labels_of(images))
    options: dict[str, Any] = {"criterion": "magnitude"} | given
    found = secateur.learn(model, pair, "75% params", settings=settings, **options)
    assert on(found.model, device)
    assert found.result.cost.params <= 0.75 * found.result.cost_dense.params


@pytest.mark.parametrize("family", FAMILIES)
def test_learn_from_spectral_menus(family: str, device: torch.device) -> None:
    images = images_of(model_of(family), TRAINED)
    settings = LearnSettings(**SEARCH)
    plain = secateur.learn(model_of(family), images, "75% params", settings=settings, device="cpu")
    moved = secateur.learn(model_of(family).to(device), images, "75% params", settings=settings)
    if device.type == "standin":
        assert moved.result.plan.shapes == plain.result.plan.shapes
        assert_same(moved.model, plain.model, device)


@pytest.mark.parametrize("family", FAMILIES)
def test_polish(family: str, device: torch.device) -> None:
    def polished(where: torch.device) -> nn.Module:
        model = model_of(family).to(where)
        images = images_of(model, TRAINED)
        return secateur.prune(
            model, images, "50% hidden", preset="magnitude", polish="2 steps", **FINE
        ).model

    plain, moved = polished(CPU), polished(device)
    if device.type == "standin":
        assert_same(moved, plain, device)


REPAIRED: tuple[tuple[str, str, str], ...] = (
    ("vit", "60% width", "magnitude"),
    ("vit", "60% width", "slicegpt"),
    ("vit", "50% hidden, 50% qk, 50% vo", "energy"),
    ("vit", "3 heads", "energy"),
    ("deit3", "drop 2 attention", "layer_drop"),
    ("deit3", "drop 2 attention", "spectral"),
    ("deit3", "50% hidden", "spectral"),
    ("efficientformer_least", "drop 1 mlp", "spectral"),
    ("efficientformer_least", "60% width", "magnitude"),
)


@pytest.mark.parametrize("repair", get_args(Repair))
@pytest.mark.parametrize(("family", "budget", "preset"), REPAIRED)
def test_repairs(family: str, budget: str, preset: str, repair: str, device: torch.device) -> None:
    def smaller(where: torch.device) -> object:
        model = model_of(family).to(where)
        options: dict[str, Any] = {"preset": preset, "repair": repair, "effort": "quick"}
        if "width" in budget:
            options |= {"groups": ["width"], "align": {"width": 1}, "minimum": {"width": 1}}
        try:
            return secateur.prune(model, images_of(model), budget, **options).model
        except UserError as error:
            return str(error)

    plain, moved = smaller(CPU), smaller(device)
    if isinstance(plain, str):
        assert moved == plain
    elif device.type == "standin":
        assert isinstance(moved, nn.Module) and isinstance(plain, nn.Module)
        assert_same(moved, plain, device)


@pytest.mark.parametrize("family", FAMILIES)
def test_analyze(family: str, device: torch.device) -> None:
    def looked(where: torch.device) -> dict[str, Any]:
        model = model_of(family).to(where)
        found = secateur.analyze(model, images_of(model), latency=False)
        assert found.html()
        left_out = ("seconds", "costs", "findings")
        return {key: value for key, value in found.record.items() if key not in left_out}

    plain, moved = looked(CPU), looked(device)
    assert near(moved["layers"], plain["layers"], device)
    assert near(moved["scores"], plain["scores"], device)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate(family: str, device: torch.device) -> None:
    dense, small = model_of(family), shrunk(family)
    images = images_of(dense, TRAINED)
    pair = (images, labels_of(images))
    plain = secateur.evaluate(small, pair, reference=dense)
    moved = secateur.evaluate(small.to(device), pair, reference=dense)
    assert near(moved.to_json(), plain.to_json(), device)


def test_metrics_of_features(device: torch.device) -> None:
    images = images_of(model_of("vit"), 40)
    pair = (images, torch.arange(40) % 4)

    def measured(where: torch.device) -> dict[str, Any]:
        model, reference = shrunk("vit").to(where), model_of("vit").to(where)
        batches = open_data(model, pair, own_labels=True)[0]
        which = ["knn", "linear_probe", "retrieval", "features"]
        return evaluate_metrics(model, batches, which, train=batches, reference=reference)

    assert near(measured(device), measured(CPU), device)


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_and_bench(
    family: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("secateur.measurement.timing.SECONDS", 0.0)
    dense = model_of(family)
    found = secateur.inspect(dense.to(device), latency=True)
    assert found.latency is not None and found.latency.device == str(device)
    rows = secateur.bench(
        {"dense": dense, "pruned": shrunk(family)},
        found.input_size,
        min_runs=2,
        max_seconds=0.0,
        device=str(device),
    )
    assert [row.latency.device for row in rows] == [str(device)] * 2


def test_latency_of_both_models(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.verbs.evaluate.SECONDS", 0.0)
    model = model_of("vit").to(device)
    found = secateur.prune(model, images_of(model), "80% macs", preset="magnitude", latency=True)
    assert [row["device"] for row in found.latency] == [str(device)] * 2


@pytest.mark.parametrize("preset", ["magnitude", "slicegpt", "nbl"])
def test_save_and_load(preset: str, device: torch.device, tmp_path: Path) -> None:
    model = secateur.load("digits_vit", device=device)
    assert on(model, device)
    found = secateur.prune(model, "digits/train", "80% macs", preset=preset, limit=16)
    found.save(tmp_path / "small")
    here = secateur.load(tmp_path / "small")
    there = secateur.load(tmp_path / "small", device=str(device))
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor.cpu(), here.state_dict()[name])
        assert torch.equal(tensor.cpu(), there.state_dict()[name].cpu())
    assert on(here, CPU) and on(there, device)


def test_a_device_that_is_not_there_is_named_with_those_that_are(device: torch.device) -> None:
    assert present_devices()[0] == "cpu" and len(present_devices()) > 1
    with pytest.raises(UserError, match=f"device '{device.type}:99' is not available here; choose"):
        secateur.load("digits_vit", device=f"{device.type}:99")
