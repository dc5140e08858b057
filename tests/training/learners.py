"""What tests of training share: a tiny dense model, a cut student, images, quiet settings."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.training.distillation.objectives import supervised
from secateur.training.loop import FitReport, fit_
from secateur.training.settings import TrainSettings
from tests.hosts import build, images_for

CLASSES = 10
SGD = {"name": "sgd", "learning_rate": 0.05, "clip": None}
"""For comparisons: Adam makes steps of full size also where gradients are rounding errors only."""


def settings(**changes: Any) -> TrainSettings:
    """Ten steps of eight images, no trackers."""
    return TrainSettings(**{"steps": 10, "batch_size": 8, "trackers": (), **changes})


def pair(model: nn.Module, count: int = 40) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    labels = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(1))
    return images_for(model, count), labels


def fit(model: nn.Module, how: TrainSettings, folder: Path | None = None, **more: Any) -> FitReport:
    """Train on labels, unless told otherwise."""
    more = {"classes": CLASSES, "labelled": True, **more}
    objective = more.pop("objective", supervised())
    return fit_(model, pair(model), objective, how, folder=folder, **more)


def fresh(name: str = "vit") -> nn.Module:
    """A host with dropout, so that the randomness of the forward pass counts."""
    model = build(name)
    model.pos_drop = nn.Dropout(0.1)
    return model.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have bit-identical weights."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def copy_of(model: nn.Module) -> nn.Module:
    """Another model with the same weights."""
    return copy.deepcopy(model)
