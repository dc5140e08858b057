"""Learned masks from a model and images to a smaller model that is within its budget."""

import json
import re
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import secateur
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.masks.granularity import granularities
from secateur.masks.settings import LearnSettings, phases
from secateur.models.family import read
from secateur.training.distillation.teacher import Teacher
from secateur.training.settings import OptimizerSettings
from secateur.verbs.learn import learn
from secateur.verbs.learned_result import Learned
from secateur.verbs.load import give_preprocessing_
from tests.hosts import build, images_for

FAST: dict[str, object] = {
    "steps": 12,
    "batch_size": 16,
    "checks": 1,
    "observe": 64,
    "held_out": 0.1,
    "checkpoint_seconds": 0,
}


def settings(**changes: object) -> LearnSettings:
    return LearnSettings(**{**FAST, **changes})


def digits(budget: str = "40% params", **options: object) -> Learned:
    given = {"settings": settings(), "limit": 128} | options
    return learn(secateur.load("digits_vit"), "digits/train", budget, **given)


@pytest.mark.parametrize("sharing", granularities.names())
def test_every_sharing_ends_within_its_budget_and_loads_again(sharing: str, tmp_path: Path) -> None:
    told: list[str] = []
    found = digits(sharing=sharing, on_note=told.append)
    record = found.record()
    dense = read(secateur.load("digits_vit")).cost()
    left = sum(p.numel() for p in found.model.parameters())
    assert left == record["params"]["pruned"] <= 0.4 * dense.params == 0.4 * 302_154
    assert record["params"]["dense"] == dense.params
    learning = record["learning"]
    assert learning["removed_percent"] == pytest.approx(100 * (1 - left / dense.params))
    if sharing == "independent":
        assert learning["masked_percent"] > learning["removed_percent"]
        assert any("could not be removed" in note for note in record["notes"])
    else:
        assert learning["masked_percent"] == learning["removed_percent"]
    assert len(told) == 1 and re.search(r"At most \d+\.\d % .* removed", told[0])
    assert found.phases["search"].steps + found.phases["tune"].steps == 12
    found.save(tmp_path / "small")
    again = secateur.load(tmp_path / "small")
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(again(x), found.model(x), atol=1e-6)
    assert {f.name for f in (tmp_path / "small").iterdir()} == {
        "spec.json", "model.safetensors", "README.md", "report.html", "training.json"
    }  # fmt: skip
    spec = json.loads((tmp_path / "small" / "spec.json").read_text())
    assert spec["provenance"]["learning"]["sharing"] == sharing


def test_the_model_given_stays_as_it_is() -> None:
    model = secateur.load("digits_vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    learn(model, "digits/train", "50% macs", settings=settings(), limit=96)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not model.training and not any(m._forward_hooks for m in model.modules())


def test_one_shot_is_a_run_without_search() -> None:
    found = digits(settings=settings(search_share=0.0))
    assert set(found.phases) == {"tune"} and found.phases["tune"].steps == 12
    again = digits(settings=settings(search_share=0.0))
    assert found.result.plan == again.result.plan


def test_a_run_from_scratch_warms_up_first() -> None:
    torch.manual_seed(0)
    model = build("vit")
    x = torch.randn(64, 3, 32, 32)
    y = torch.randint(10, (64,))
    found = learn(model, (x, y), "50% params", settings=settings(warmup_share=0.3), limit=None)
    assert list(found.phases) == ["warmup", "search", "tune"]
    assert found.model(images_for(model)).shape == (4, 10)


def test_images_without_labels_are_enough() -> None:
    model = build("vit")
    found = learn(model, torch.randn(64, 3, 32, 32), "50% params", settings=settings())
    assert any("no labels" in note for note in found.result.notes)
    assert set(found.phases["tune"].history[-1]) & {"labels", "logits"} == {"logits"}


def test_a_model_cut_before_learns_from_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = secateur.load("digits_vit")
    small = secateur.prune(dense, "digits/train", "60% params", limit=64).model
    taught: list[int] = []
    asked = Teacher.logits

    def logits(self: Teacher, images_BCHW: Tensor) -> Tensor:
        taught.append(sum(p.numel() for p in self.model.parameters()))
        return asked(self, images_BCHW)

    monkeypatch.setattr(Teacher, "logits", logits)
    plain = learn(small, "digits/train", "60% params", settings=settings(), limit=96)
    assert plain.record()["learning"]["reference"] is None
    own = sum(p.numel() for p in small.parameters())
    assert set(taught) == {own}
    taught.clear()
    found = learn(
        small, "digits/train", "60% params", reference="digits_vit", settings=settings(), limit=96
    )
    assert set(taught) == {302_154}
    assert sum(p.numel() for p in found.model.parameters()) <= 0.6 * own
    assert found.record()["learning"]["reference"] == "digits_vit"
    assert found.phases["tune"].history != plain.phases["tune"].history


def test_unlearned_groups_and_layers_stay() -> None:
    found = digits("80% params", groups=["hidden"], protect=["blocks.0"])
    before, after = read(secateur.load("digits_vit")).shapes, found.result.plan.shapes
    changed = {branch for branch, shape in after.items() if shape != before[branch]}
    assert changed and all(b.endswith("mlp") and not b.startswith("blocks.0") for b in changed)


def test_a_latency_budget_is_measured() -> None:
    # WHY mixed: whole layers can go, so that the budget is in reach however the machine is loaded.
    found = digits("90% ms", sharing="mixed", settings=settings(steps=4))
    use = found.result.budget_use
    assert use is not None and use.unit == "ms" and use.reached > 0
    assert any(note.startswith("Latency") for note in found.result.notes)


class Killed(RuntimeError):
    """Stands for a kill at any moment."""


def kill_at(phase: str, done: int):  # type: ignore[no-untyped-def]
    def progress(stage: str, now: int, total: int) -> None:
        if stage == phase and now >= done:
            raise Killed

    return progress


def test_a_run_goes_on_with_the_axes_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        digits(folder=tmp_path, progress=kill_at("search", 48))

    def refuse(*_args: object) -> None:
        raise AssertionError("turned again")

    monkeypatch.setattr("secateur.masks.phases.turn_attention_", refuse)
    assert digits(folder=tmp_path).phases["search"].resumed_at is not None
    with pytest.raises(AssertionError, match="turned again"):
        digits(folder=tmp_path, restart=True)
    digits(settings=settings(axes="given"))


@pytest.mark.parametrize(("phase", "images"), [("search", 48), ("tune", 64)])
def test_a_killed_run_goes_on_to_the_same_model(phase: str, images: int, tmp_path: Path) -> None:
    whole = digits()
    with pytest.raises(Killed):
        digits(folder=tmp_path, progress=kill_at(phase, images))
    again = digits(folder=tmp_path)
    assert again.phases[phase].resumed_at is not None
    assert again.result.plan == whole.result.plan
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_configuration_does_not_go_on(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        digits(folder=tmp_path, progress=kill_at("search", 48))
    with pytest.raises(UserError, match="sharing: common_count → mixed"):
        digits(folder=tmp_path, sharing="mixed")
    with pytest.raises(UserError, match=r"budget: 40% params → 30% params"):
        digits("30% params", folder=tmp_path)
    assert digits(folder=tmp_path, sharing="mixed", restart=True).phases


def never(_model: nn.Module, *_: object, **__: object) -> Tensor:
    raise AssertionError("training began")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "1% params"}, r"out of reach: .* are left"),
        ({"budget": "50% hidden"}, "budget of the whole model"),
        ({"budget": "drop 2 blocks"}, "budget of the whole model"),
        ({"sharing": "comon_count"}, "did you mean 'common_count'"),
        ({"gates": "hard"}, "unknown form of gate"),
        ({"criterion": "tailor"}, "did you mean 'taylor'"),
        ({"criterion": "leverage"}, "cannot score"),
        ({"groups": ["hiden"]}, "did you mean 'hidden'"),
        ({"protect": ["blocks.9"]}, "is protected but is no branch"),
        ({"groups": ["branch"]}, "finds nothing to gate"),
        ({"settings": {"search_share": 0.7, "warmup_share": 0.3}}, "take the whole run"),
        ({"align": {"hidden": 0}}, "makes no sense"),
        ({"images": "digits/nothing"}, "digits"),
        ({"limit": 1}, "too few"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_before_training(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.training.session.fit_", never)
    given = {"budget": "40% params", "settings": {}, "limit": 64, "images": "digits/train"}
    given |= options
    budget, images, changes = given.pop("budget"), given.pop("images"), given.pop("settings")
    with pytest.raises(UserError, match=message):
        learn(secateur.load("digits_vit"), images, budget, settings=settings(**changes), **given)


def test_classes_that_do_not_match_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.training.session.fit_", never)
    model = secateur.load("timm:vit_tiny_patch16_224", pretrained=False, num_classes=3)
    with pytest.raises(UserError, match=r"classes|channel"):
        learn(model, "digits/train", "40% params", settings=settings(), limit=64)


@pytest.mark.parametrize(
    ("classes", "weights", "message"),
    [(3, {}, "the reference has 3 classes"), (10, {"token_weight": 1.0}, "cannot be compared")],
)
def test_a_reference_that_cannot_teach_is_refused(
    classes: int, weights: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.training.session.fit_", never)
    torch.manual_seed(0)
    other = VisionTransformer(
        img_size=8,
        patch_size=4,
        in_chans=1,
        num_classes=classes,
        embed_dim=24,
        depth=1,
        num_heads=2,
    )
    give_preprocessing_(other, Preprocessing.of(secateur.load("digits_vit")))
    distil = LearnSettings().distil.model_copy(update=weights)
    with pytest.raises(UserError, match=message):
        digits(reference=other, settings=settings(distil=distil))


def test_a_diverging_run_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    model = secateur.load("digits_vit")
    wild = settings(optimizer=OptimizerSettings(learning_rate=1e30, clip=None), keep="last")
    with pytest.raises(UserError, match=r"failed at step \d+"):
        learn(model, "digits/train", "40% params", settings=wild, limit=96, folder=tmp_path)
    assert bool(next(model.parameters()).isfinite().all())


def test_phases_share_the_run_out() -> None:
    found = phases(settings(steps=100, warmup_share=0.2, search_share=0.3), 1000)
    assert {phase: it.steps for phase, it in found.items()} == {
        "warmup": 20, "search": 30, "tune": 50
    }  # fmt: skip
    assert found["search"].ema is None and found["tune"].ema is not None
    rates = {phase: it.optimizer.learning_rate for phase, it in found.items()}
    assert rates["search"] == 0.5 * rates["tune"] == 0.5 * rates["warmup"]
    timed = phases(LearnSettings(time="10min", search_share=0.25), 1000)
    assert timed["search"].length(1000).seconds == 150
    assert timed["tune"].length(1000).seconds == 450
