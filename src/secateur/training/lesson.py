"""What the training loop asks of its users: an objective, and hooks around each step.

Legend: B batch, C classes, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UserError

Terms = Mapping[str, Tensor]
"""Scalars by name; what is minimised is their sum. A name that starts with "_" is only logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where training stands: `step` optimizer steps are done, `share` of the budget is used."""

    step: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """The images of one forward pass; `labels_B` is None without labels.

    `targets_BC` are the probabilities of classes that mixup, cutmix and label smoothing make of
    labels; None where no images were mixed. `rows_B` are the numbers of the images' views among
    those of all images; None where views are not limited or images were mixed.
    """

    images_BCHW: Tensor
    labels_B: Tensor | None = None
    targets_BC: Tensor | None = None
    rows_B: Tensor | None = None


Objective = Callable[[nn.Module, Lesson, Moment], Terms]
"""From a model and a batch to the terms of the loss, called under autograd and autocast.

The model is the bare student: it may be called whole or taken apart.
"""


class Hook:
    """Something that takes part in training; override what is needed.

    `module` holds parameters besides the model's. Their gradients are summed over processes like
    the model's; `optimizer` trains them, at a learning rate that is the hook's own business. Both
    are in checkpoints. What a hook draws at random in `before_step` is the same in all processes,
    what is drawn in the forward pass differs; both are the same again in a resumed run.
    """

    module: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None

    def before_step(self, moment: Moment) -> None:
        """Called once per optimizer step, before its first forward pass."""

    def terms(self, model: nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        """Terms to add to the loss, computed in the same forward pass after the objective's."""
        return {}

    def after_step(self, moment: Moment) -> None:
        """Called once per optimizer step, after it; `moment.step` counts it."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps besides module and optimizer: numbers, tensors, containers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def log(self) -> Mapping[str, float]:
        """Numbers for the log."""
        return {}


class NotFinite(UserError):
    """Training met numbers that are not finite: `found`, such as "loss nan", at `step`."""

    def __init__(self, sentence: str, step: int, found: str) -> None:
        super().__init__(sentence)
        self.step = step
        self.found = found


class Classroom(nn.Module):
    """Student, hooks and objective as one module.

    WHY: distributed training sees only what passes through the forward method of the module it
    wraps, and objectives take the student apart.
    """

    def __init__(self, model: nn.Module, objective: Objective, hooks: Sequence[Hook]) -> None:
        super().__init__()
        self.model = model
        self.extras = nn.ModuleList(hook.module for hook in hooks if hook.module is not None)
        self._objective = objective
        self._hooks = list(hooks)

    def forward(self, lesson: Lesson, moment: Moment) -> dict[str, Tensor]:
        """All terms of the loss by name."""
        terms = dict(self._objective(self.model, lesson, moment))
        for hook in self._hooks:
            terms |= hook.terms(self.model, lesson, moment)
        return terms


def total(terms: Terms) -> Tensor:
    """What is minimised."""
    counted = [value for name, value in terms.items() if not name.startswith("_")]
    loss: Tensor = sum(counted[1:], start=counted[0])
    return loss
