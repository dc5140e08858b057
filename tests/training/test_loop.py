"""The loop: it learns, repeats itself, goes on where it was killed, leaves nothing half done."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import muon
from torch import Tensor, nn

from secateur.data.images import open_images
from secateur.data.preprocessing import Preprocessing
from secateur.errors import Advice, UserError
from secateur.training import checkpoint, machine
from secateur.training.distillation.objectives import supervised
from secateur.training.distillation.teacher import teacher_for
from secateur.training.identity import PREPARED, identity_of, refuse_other_run
from secateur.training.images.held_out import HeldOut
from secateur.training.images.sampler import items_of
from secateur.training.lesson import Hook, Lesson, Moment
from secateur.training.loop import fit_
from secateur.training.settings import OptimizerSettings
from secateur.verbs.load import load
from tests.hosts import build
from tests.training.learners import CLASSES, SGD, copy_of, fit, fresh, pair, same, settings

EVERYTHING = {
    "accumulate": 2,
    "augment": {"mixup": 0.2, "cutmix": 0.5, "mix_until": 0.7},
    "label_smoothing": 0.1,
    "optimizer": {"weight_decay": 0.05, "learning_rate": 1e-3},
}


class KillAt(Hook):
    """Ends the run after a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, moment: Moment) -> None:
        if moment.step == self.step:
            raise KeyboardInterrupt


def judge_of(model: nn.Module) -> HeldOut:
    images, labels = pair(model, 12)
    items = items_of((images, labels), settings().augment)
    teacher = teacher_for(model, build("vit_no_positions"))
    return HeldOut(items=items, labels=True, teacher=teacher, batch_size=5)


def test_it_learns_and_leaves_the_model_as_it_stood() -> None:
    model, told = fresh(), []
    report = fit(
        model,
        settings(steps=40, optimizer={"learning_rate": 3e-3}, log_every=20),
        progress=lambda stage, done, total: told.append((stage, done, total)),
    )
    assert report.history[-1]["loss"] < 0.7 * report.history[0]["loss"]
    assert report.steps == 40 and report.images == 40
    assert told[-1] == ("train", 320, 320)
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    models = [fresh() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(3)
        fit(model, settings(seed=seed, **EVERYTHING))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_training_draws_nothing_from_the_outer_generator() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fit(fresh(), settings(steps=2))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("killed_at", [1, 6, 9])
def test_a_killed_run_goes_on_bit_for_bit(killed_at: int, tmp_path: Path) -> None:
    straight, stopped = fresh(), fresh()
    how = settings(checkpoint_seconds=0, log_every=3, **EVERYTHING)
    whole = fit(straight, how, judge=judge_of(straight), hooks=[Hook()])
    judge = judge_of(stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, how, tmp_path, judge=judge, hooks=[KillAt(killed_at)])
    assert same(stopped, fresh())
    report = fit(stopped, how, tmp_path, judge=judge, hooks=[Hook()])
    # Killed in its first step, a run has no checkpoint yet and begins anew.
    assert report.resumed_at == (killed_at - 1 or None)
    assert same(straight, stopped)
    assert report.scores == whole.scores
    kept = [{k: row[k] for k in ("step", "loss", "labels")} for row in report.history]
    assert kept == [{k: row[k] for k in ("step", "loss", "labels")} for row in whole.history]


def test_a_finished_run_gives_its_weights_at_once(tmp_path: Path) -> None:
    model, again = fresh(), fresh()
    fit(model, settings(), tmp_path)

    def objective(model: nn.Module, lesson: Lesson, moment: Moment) -> Mapping[str, Tensor]:
        raise AssertionError("it trained again")

    report = fit_(
        again,
        pair(again),
        objective,
        settings(),
        classes=CLASSES,
        labelled=True,
        folder=tmp_path,
    )
    assert report.steps == 10
    assert same(model, again)


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), settings(checkpoint_seconds=0), tmp_path, hooks=[KillAt(5)])
    other = settings(optimizer={"learning_rate": 2e-4}, log_every=3)
    with pytest.raises(UserError, match=r"optimizer.learning_rate: 0.0001 → 0.0002.*--restart"):
        fit(fresh(), other, tmp_path, hooks=[Hook()])
    changed = fresh()
    with torch.no_grad():
        changed.head.bias.add_(1)
    with pytest.raises(UserError, match="starting weights: "):
        fit(changed, settings(), tmp_path, hooks=[Hook()])
    assert fit(fresh(), other, tmp_path, restart=True).resumed_at is None


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    model = fresh()

    def objective(model: nn.Module, lesson: Lesson, moment: Moment) -> Mapping[str, Tensor]:
        terms = supervised()(model, lesson, moment)
        return {k: v * float("nan") if moment.step == 6 else v for k, v in terms.items()}

    with pytest.raises(UserError, match=r"failed at step 7: .*checkpoint is kept in"):
        fit_(
            model,
            pair(model),
            objective,
            settings(checkpoint_seconds=0),
            classes=CLASSES,
            labelled=True,
            folder=tmp_path,
        )
    assert same(model, fresh())
    state = checkpoint.read(tmp_path)
    assert state is not None and state["step"] == 6
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.write(tmp_path, {"step": 3, "x": torch.ones(2)})

    def full(*_: object, **__: object) -> None:
        (tmp_path / f".{checkpoint.FILE}.unfinished").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"the disk is full; the one before it is whole"):
        checkpoint.write(tmp_path, {"step": 4})
    found = checkpoint.read(tmp_path)
    assert found is not None and found["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def test_the_best_judged_weights_come_out() -> None:
    model = fresh()
    judge = judge_of(model)
    report = fit(model, settings(optimizer={"learning_rate": 1.0}, checks=3), judge=judge)
    best = min(report.scores, key=lambda score: score.value)
    assert (report.best_step, report.averaged) == (best.step, best.averaged)
    with torch.no_grad():
        wrong, count = judge(model, 0, 1)["error"]
    assert wrong / count == pytest.approx(best.value)


def test_a_judge_adds_up_over_parts() -> None:
    model = fresh()
    judge = judge_of(model)
    with torch.no_grad():
        whole = judge(model, 0, 1)
        parts = [judge(model, part, 5) for part in range(5)]
    for name, (value, count) in whole.items():
        assert sum(p[name][0] for p in parts) == pytest.approx(value, rel=1e-5)
        assert sum(p[name][1] for p in parts) == count


def test_frozen_parameters_stay() -> None:
    model = fresh()
    model.patch_embed.requires_grad_(False)
    before = copy_of(model)
    fit(model, settings())
    assert same(model.patch_embed, before.patch_embed)
    assert not torch.equal(model.head.weight, before.head.weight)
    assert not any(p.requires_grad for p in model.patch_embed.parameters())


def test_a_time_is_kept() -> None:
    report = fit(fresh(), settings(steps=None, time="1s"))
    assert 1 <= report.seconds < 5
    assert report.steps > 3


class Counter(Hook):
    """A parameter of its own, trained by its own optimizer; remembers what it was told."""

    def __init__(self) -> None:
        self.module = nn.ParameterDict({"scale": nn.Parameter(torch.ones(()))})
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)
        self.steps: list[int] = []
        self.noise = torch.zeros(())

    def before_step(self, moment: Moment) -> None:
        self.noise = torch.rand(())

    def terms(self, model: nn.Module, lesson: Lesson, moment: Moment) -> Mapping[str, Tensor]:
        return {"scale": (self.module["scale"] - self.noise).square()}

    def after_step(self, moment: Moment) -> None:
        self.steps.append(moment.step)

    def state_dict(self) -> dict[str, object]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.steps = list(state["steps"])  # type: ignore[call-overload]

    def log(self) -> Mapping[str, float]:
        return {"own": 1.0}


def test_hooks_train_their_own_parameters_and_go_on_too(tmp_path: Path) -> None:
    straight, stopped, again = Counter(), Counter(), Counter()
    how = settings(checkpoint_seconds=0, log_every=1)
    report = fit(fresh(), how, hooks=[straight])
    assert straight.steps == list(range(1, 11))
    assert report.history[0]["own"] == 1.0 and "scale" in report.history[0]
    assert straight.module["scale"].item() < 0.9

    def kill(stage: str, done: int, total: int) -> None:
        if done == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), how, tmp_path, hooks=[stopped], progress=kill)
    assert fit(fresh(), how, tmp_path, hooks=[again]).resumed_at == 5
    assert again.steps == straight.steps
    assert torch.equal(again.module["scale"], straight.module["scale"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 9, "accumulate": 2}, "cannot be shared out evenly"),
        ({"batch_size": 5, "augment": {"mixup": 0.1}}, "pair images, but each process sees 5"),
        ({"optimizer": {"name": "adamm"}}, "timm has no optimizer 'adamm'"),
        ({"trackers": ("wandb",)}, "the tracker wandb needs its library"),
    ],
)
def test_what_cannot_work_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        fit(fresh(), settings(**changes), tmp_path)
    assert not (tmp_path / checkpoint.FILE).exists()


def test_half_precision_and_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="too coarse to be trained"):
        fit(fresh().bfloat16(), settings())
    model = fresh()
    with pytest.raises(UserError, match="cannot train on a list"):
        fit_(model, [1, 2], supervised(), settings())
    with pytest.raises(UserError, match="no images to train on"):
        fit_(model, torch.zeros(0, 3, 32, 32), supervised(), settings())


def test_bf16_trains_full_precision_weights() -> None:
    model, how = fresh(), settings(steps=3, log_every=1)
    report = fit(model, settings(precision="bf16", steps=3, log_every=1))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    full = fit(fresh(), how).history[-1]["loss"]
    assert report.history[-1]["loss"] == pytest.approx(full, rel=0.05)
    assert report.history[-1]["loss"] != full


def test_accumulated_parts_equal_a_whole_batch() -> None:
    one, two = fresh(), fresh()
    one.pos_drop = two.pos_drop = nn.Identity()
    fit(one, settings(optimizer=SGD))
    fit(two, settings(optimizer=SGD, accumulate=4))
    assert not same(one, fresh())
    for key, value in one.state_dict().items():
        assert torch.allclose(value, two.state_dict()[key], atol=1e-5), key


def test_tensorboard_gets_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fit(fresh(), settings(trackers=("tensorboard",), log_every=2), tmp_path)
    assert list((tmp_path / "secateur_logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_bf16_without_instructions_for_it_is_told(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: native)
    fit(fresh(), settings(precision=precision, steps=1))
    told = [str(w.message) for w in recwarn if w.category is Advice]
    if native or precision == "no":
        assert told == []
    else:
        assert len(told) == 1 and "leave out precision: bf16" in told[0]


@pytest.mark.parametrize("native", [True, False])
def test_muon_turns_in_the_precision_that_a_processor_has(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.dtype] = []
    orthogonal = muon.zeropower_via_newtonschulz

    def watched(*args: Any, dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Tensor:
        used.append(dtype)
        return orthogonal(*args, dtype=dtype, **kwargs)

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", watched)
    monkeypatch.setattr(machine, "has_bf16", lambda: native)
    fit(fresh(), settings(optimizer=OptimizerSettings(name="muon"), steps=1))
    assert set(used) == {torch.bfloat16 if native else torch.float32}
    assert muon.zeropower_via_newtonschulz is watched


def test_a_run_goes_on_only_with_images_prepared_alike(tmp_path: Path) -> None:
    digits = Preprocessing.of(model := load("digits_vit"))
    told = {}
    for mean in (digits.mean, (0.3,)):
        images = open_images("digits/test", digits.override(mean=mean), limit=8)
        told[mean] = identity_of(model, images, 8, settings(), {})
    first, other = told.values()
    refuse_other_run(first, first, tmp_path)
    with pytest.raises(UserError, match=r"another run \(images\.preprocessing\.mean: .*0\.3"):
        refuse_other_run(first, other, tmp_path)
    earlier = {**first, "images": {k: v for k, v in first["images"].items() if k != PREPARED}}
    refuse_other_run(earlier, other, tmp_path)
