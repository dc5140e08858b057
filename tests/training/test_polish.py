"""A short polish: it helps, repeats itself, never harms and cleans up."""

import copy
import time

import pytest
import torch
from torch import Tensor, nn

from secateur.data.batches import Batches, as_batches
from secateur.errors import UserError
from secateur.training import PolishReport, PolishSettings, parse_run_length, polish_
from secateur.training.distillation.losses import divergence
from secateur.verbs.prune import prune
from tests.hosts import build, images_for

SETTINGS = PolishSettings(learning_rate=1e-3, batch_size=16)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return build("vit")


@pytest.fixture(scope="module")
def images(dense: nn.Module) -> Tensor:
    return images_for(dense, 80)


@pytest.fixture(scope="module")
def pruned(dense: nn.Module, images: Tensor) -> nn.Module:
    return prune(dense, images, "50% hidden, drop 1 attention", preset="magnitude").model


def run(
    student: nn.Module, dense: nn.Module, images: Tensor | Batches, budget: str = "20 steps", **more
) -> PolishReport:
    more = {"settings": SETTINGS} | more
    return polish_(student, dense, as_batches(images, 8), parse_run_length(budget), **more)


def held_out_kl(model: nn.Module, dense: nn.Module, images: Tensor) -> float:
    held = torch.cat(images.split(8)[4::5])
    with torch.no_grad():
        return float(divergence(model(held), dense(held)))


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_twenty_steps_lower_the_divergence_on_held_out_images(
    dense: nn.Module, pruned: nn.Module, images: Tensor
) -> None:
    student, teacher, told = copy.deepcopy(pruned), copy.deepcopy(dense), []
    before = held_out_kl(student, dense, images)
    report = run(student, teacher, images, on_step=lambda done, total: told.append((done, total)))
    assert report.kl_before == pytest.approx(before, rel=1e-4)
    assert report.kl_after == pytest.approx(held_out_kl(student, dense, images), rel=1e-4)
    assert report.kl_after < 0.5 * before
    assert (report.steps, report.images, report.held_out) == (20, 64, 16)
    assert [check.step for check in report.checks] == [4, 8, 12, 16, 20]
    assert told == [(step, 20) for step in range(1, 21)]
    assert same(teacher, dense)
    assert not any(module.training for module in student.modules())
    assert all(p.requires_grad and p.grad is None for p in student.parameters())


def test_fresh_images_gain_too(dense: nn.Module, pruned: nn.Module, images: Tensor) -> None:
    student, fresh = copy.deepcopy(pruned), images_for(dense, 64, seed=1)
    run(student, dense, images)
    with torch.no_grad():
        wanted = dense(fresh)
        assert divergence(student(fresh), wanted) < 0.5 * divergence(pruned(fresh), wanted)


def test_the_same_seed_gives_the_same_weights(
    dense: nn.Module, pruned: nn.Module, images: Tensor
) -> None:
    students = [copy.deepcopy(pruned) for _ in range(3)]
    for student, seed in zip(students, (0, 0, 1), strict=True):
        torch.rand(1)
        run(student, dense, images, "6 steps", seed=seed)
    assert same(students[0], students[1])
    assert not same(students[0], students[2])


def test_training_that_harms_is_not_kept(
    dense: nn.Module, pruned: nn.Module, images: Tensor
) -> None:
    student = copy.deepcopy(pruned)
    report = run(student, dense, images, "5 steps", settings=PolishSettings(learning_rate=3.0))
    assert min(check.kl for check in report.checks) > report.kl_before
    assert (report.best_step, report.kl_after) == (0, report.kl_before)
    assert same(student, pruned)


def test_a_loss_that_is_not_finite_stops_and_restores(
    dense: nn.Module, pruned: nn.Module, images: Tensor
) -> None:
    student, teacher = copy.deepcopy(pruned), copy.deepcopy(dense)
    calls = 0

    def spoil(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return output * float("nan") if calls > 1 else output

    settings = PolishSettings(layerwise=0.0, learning_rate=1e-3)
    student.blocks[1].mlp.fc2.register_forward_hook(spoil)
    with pytest.raises(UserError, match=r"failed at step 2: loss nan.*as it was before"):
        run(student, teacher, images, settings=settings)
    assert same(student, pruned)
    assert all(p.grad is None for p in student.parameters())


def test_an_interrupted_polish_leaves_the_old_weights(
    dense: nn.Module, pruned: nn.Module, images: Tensor
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    student = copy.deepcopy(pruned)
    with pytest.raises(KeyboardInterrupt):
        run(student, dense, images, on_step=interrupt)
    assert same(student, pruned)


def test_a_time_is_kept(dense: nn.Module, pruned: nn.Module, images: Tensor) -> None:
    student = copy.deepcopy(pruned)
    start = time.perf_counter()
    report = run(student, dense, images, "1s")
    assert 1 <= report.seconds <= time.perf_counter() - start
    assert report.seconds < 5
    assert report.steps > 1
    assert report.checks[-1].step == report.steps


def test_frozen_weights_are_trained_and_frozen_again(
    dense: nn.Module, pruned: nn.Module, images: Tensor
) -> None:
    student = copy.deepcopy(pruned).requires_grad_(False)
    report = run(student, dense, images, "5 steps")
    assert report.kl_after < report.kl_before
    assert not any(p.requires_grad for p in student.parameters())


def test_half_precision_is_refused(dense: nn.Module, pruned: nn.Module, images: Tensor) -> None:
    with pytest.raises(UserError, match=r"trains in float32, but .*bfloat16"):
        run(copy.deepcopy(pruned).bfloat16(), dense, images)
