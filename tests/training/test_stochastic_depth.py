"""Stochastic depth: which updates are left out, for which model and mode, and that it ends."""

import copy

import pytest
import torch
from torch import nn

from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.training.distillation.objectives import supervised
from secateur.training.loop import fit_
from secateur.training.settings import TrainSettings
from secateur.training.updates.stochastic_depth import stochastic_depth
from tests.hosts import build, images_for


@pytest.mark.parametrize("name", ["vit", "efficientformer"])
@torch.no_grad()
def test_updates_are_dropped_image_by_image_and_more_often_in_late_blocks(name: str) -> None:
    model = build(name)
    x = images_for(model)[:1].repeat(400, 1, 1, 1)
    dense = model(x[:2])
    anatomy, family = read(model), family_of(model)
    last = max(branch.block for branch in anatomy.branches)
    seen: dict[int, list[torch.Tensor]] = {}

    def note(block: int):  # type: ignore[no-untyped-def]
        return lambda _m, _a, out: seen.setdefault(block, []).append(out.flatten(1).abs().sum(1))

    with stochastic_depth(model, 0.5):
        for branch in anatomy.branches:
            hook_point = family.hook_points(model, branch)["update"]
            model.get_submodule(hook_point.module).register_forward_hook(note(branch.block))
        assert torch.equal(model(x[:2]), dense), "evaluation drops nothing"
        twin = copy.deepcopy(model).train()
        assert not model.training
        seen.clear()
        twin(x)
    shares = {b: torch.stack(sums).eq(0).float().mean().item() for b, sums in seen.items()}
    assert shares[0] == 0 and shares[last] == pytest.approx(0.5, abs=0.1)
    assert torch.equal(model(x[:2]), dense)
    again = copy.deepcopy(model).train()
    seen.clear()
    again(x)
    assert all(bool(torch.stack(sums).ne(0).any()) for sums in seen.values())
    assert torch.stack(seen[last]).ne(0).all(), "hooks outlive the block"


def test_training_uses_it_and_leaves_nothing_behind() -> None:
    def run(drop_path: float) -> tuple[nn.Module, float]:
        model = build("vit")
        data = (images_for(model), torch.zeros(len(images_for(model)), dtype=torch.long))
        settings = TrainSettings(steps=3, batch_size=4, drop_path=drop_path)
        report = fit_(model, data, supervised(), settings, classes=10, labelled=True)
        return model, float(report.history[-1]["loss"])

    (model, without), (_, with_it) = run(0.0), run(0.9)
    assert without != with_it
    assert not any(m._forward_hooks for m in run(0.9)[0].modules())
    assert not any(m._forward_hooks for m in model.modules())


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UserError, match="drop_path"), stochastic_depth(nn.Linear(2, 2), 0.1):
        pass
