"""After removal the writers are refitted, so that the stream follows that of the dense model."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.masks.masks import masks_of
from secateur.masks.removal.refit import refit_
from secateur.masks.removal.remove import remove
from secateur.models.family import family_of
from tests.hosts import HOSTS, anatomy_of, build, images_for
from tests.masks.cases import FREE, WIDE, gates_for, random_kept
from tests.verbs.test_learn import digits, settings

IMAGES = 40
PLAIN = Plan(shapes={})
"""A plan that cuts nothing."""
REMOVABLE = [case for case in WIDE if case[1] == "common_count"]


@torch.no_grad()
def error(model: nn.Module, dense: nn.Module, images: Tensor, _plan: Plan) -> float:
    """Mean squared difference of the outputs."""
    return float((model(images) - dense(images)).square().mean())


@torch.no_grad()
def stream_error(model: nn.Module, dense: nn.Module, images: Tensor, plan: Plan) -> float:
    """The same of the stream behind the last branch, in the channels that were kept."""
    family, ends = family_of(dense), []
    for it in (model, dense):
        stream = family.embed(it, images)
        for branch in family.read(it).branches:
            stream = family.through(it, branch)(stream)
        ends.append(stream)
    last = family.read(dense).streams[-1].id
    kept = torch.tensor(plan.units[last]["width"])
    return float((ends[0] - ends[1][..., kept]).square().mean())


def refitted(smaller: nn.Module, dense: nn.Module, plan: Plan, images: Tensor) -> nn.Module:
    found = copy.deepcopy(smaller)
    refit_(found, dense, plan, as_batches(images, 8), 0)
    return found


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_what_was_not_cut_stays(name: str) -> None:
    model = build(name)
    images = images_for(model, IMAGES)
    found = refitted(model, model, PLAIN, images)
    with torch.no_grad():
        torch.testing.assert_close(found(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "sharing", "width"), REMOVABLE)
def test_outputs_come_closer_to_the_dense_ones(name: str, sharing: str, width: bool) -> None:
    model, gates = build(name), gates_for(name, sharing, width=width)
    images = images_for(model, IMAGES)
    smaller, plan = remove(model, masks_of(gates, random_kept(gates)), FREE)
    found = refitted(smaller, model, plan, images)
    assert [p.shape for p in found.parameters()] == [p.shape for p in smaller.parameters()]
    linear = all(family_of(model).writes_linearly(model, b) for b in anatomy_of(name).branches)
    measure = stream_error if width else error
    before, after = (measure(it, model, images, plan) for it in (smaller, found))
    assert after < 0.9 * before if linear else after == before


def test_dropout_of_a_model_in_training_is_off() -> None:
    model = build("vit")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    smaller = copy.deepcopy(model).train()
    refit_(smaller, model.train(), PLAIN, as_batches(images_for(model, IMAGES), 8), 0)
    assert smaller.training and model.training
    x = images_for(model)
    with torch.no_grad():
        torch.testing.assert_close(smaller.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


def test_layers_that_are_gone_are_made_up_for() -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    gone = (anatomy.branches[1].id, anatomy.branches[-1].id)
    plan = Plan(shapes=anatomy.shapes | dict.fromkeys(gone))
    smaller, images = copy.deepcopy(model), images_for(model, IMAGES)
    family_of(model).drop_(smaller, set(gone))
    found = refitted(smaller, model, plan, images)
    assert error(found, model, images, plan) < 0.9 * error(smaller, model, images, plan)


def test_learned_masks_end_within_the_budget_and_refit_is_part_of_a_run(tmp_path: Path) -> None:
    found = digits(settings=settings(refit=True), folder=tmp_path)
    left = sum(p.numel() for p in found.model.parameters())
    assert left <= 0.4 * 302_154
    with pytest.raises(UserError, match=r"refit: (True|true) → (False|false)"):
        digits(settings=settings(refit=False), folder=tmp_path)
