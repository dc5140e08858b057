"""Two processes that talk through gloo train as one does with the same global batch."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.training.distillation.objectives import Distil, DistilSettings
from secateur.training.distillation.teacher import teacher_for
from secateur.training.images.held_out import HeldOut
from secateur.training.images.sampler import items_of
from secateur.training.lesson import Hook, Lesson, Moment
from tests.hosts import build
from tests.training.learners import SGD, fit, fresh, pair, settings

# WHY: autograd cannot be forked once it has started threads, as other tests let it.
pytestmark = pytest.mark.alone


class Scale(Hook):
    """A parameter beside the model's, whose gradient must be that of all processes."""

    def __init__(self) -> None:
        self.module = nn.ParameterDict({"scale": nn.Parameter(torch.ones(()))})
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1)

    def terms(self, model: nn.Module, lesson: Lesson, moment: Moment) -> Mapping[str, Tensor]:
        return {"scale": (self.module["scale"] - lesson.images_BCHW.mean()).square()}


def train(folder: Path, kind: str) -> None:
    """Train, and write weights, the hook's parameter and the scores; what each process runs."""
    from accelerate.state import AcceleratorState

    # What accelerate found out about the process that this one was forked from.
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    model = fresh()
    model.pos_drop = nn.Identity()
    teacher = teacher_for(model, build("vit_no_positions"))
    # Streams are compared relative to the variance over a process's own images, so only branch
    # by branch, whose gradients never reach the head.
    layerwise = 1.0 if kind == "layerwise" else 0.0
    distil = DistilSettings(token_weight=0.0, label_weight=1.0, layerwise=layerwise)
    hook, (images, labels) = Scale(), pair(model, 10)
    items = items_of((images, labels), settings().augment)
    judge = HeldOut(items=items, labels=True, teacher=teacher)
    how = settings(steps=6, optimizer=SGD, checkpoint_seconds=0, log_every=2)
    objective = Distil(teacher, distil)
    found = folder / "run"
    report = fit(model, how, found, hooks=[hook], judge=judge, objective=objective)
    if report.processes == 1 or torch.distributed.get_rank() == 0:
        rows = [list(score.values.values()) for score in report.scores]
        scale = hook.module["scale"].detach()
        losses = torch.tensor([row["loss"] for row in report.history])
        tensors = {"scale": scale, "scores": torch.tensor(rows), "losses": losses}
        count = torch.tensor(report.processes)
        save_file(model.state_dict() | tensors | {"count": count}, folder / "found.safetensors")


@pytest.mark.parametrize("kind", ["whole", "layerwise"])
def test_two_processes_equal_one(kind: str, tmp_path: Path) -> None:
    from accelerate import debug_launcher

    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    debug_launcher(train, (two, kind), num_processes=2)
    debug_launcher(train, (one, kind), num_processes=1)
    alone, both = (load_file(folder / "found.safetensors") for folder in (one, two))
    assert (int(alone.pop("count")), int(both.pop("count"))) == (1, 2)
    if kind == "whole":
        for name, value in alone.items():
            assert torch.allclose(value, both[name], atol=2e-5, rtol=1e-4), name
    else:
        moved = [k for k, v in fresh().state_dict().items() if not torch.equal(v, both[k])]
        assert any(".mlp." in name for name in moved)
        assert not any(name.startswith("head") for name in moved)
