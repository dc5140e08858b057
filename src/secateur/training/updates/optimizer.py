"""timm's optimizers and schedules, from settings."""

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from secateur.errors import UserError
from secateur.training.settings import TrainSettings


def optimizer_for(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """timm's optimizer of that name for the parameters that require a gradient."""
    given = settings.optimizer
    try:
        return create_optimizer_v2(
            model,
            given.name,
            given.learning_rate,
            given.weight_decay,
            layer_decay=given.layer_decay,
        )
    except (AssertionError, AttributeError, ValueError, ImportError) as error:
        raise UserError(
            f"timm has no optimizer '{given.name}' for this model ({error}); adamw always works."
        ) from error


def schedule_for(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, ticks: int
) -> Scheduler:
    """timm's schedule of that name over the whole budget, counted in ticks."""
    rate, given = settings.optimizer.learning_rate, settings.schedule
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=given.name,
        num_epochs=ticks,
        warmup_epochs=round(given.warmup * ticks),
        # WHY not 0: the first of few steps would be lost.
        warmup_lr=0.1 * rate,
        min_lr=given.least * rate,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    found: Scheduler = schedule
    return found
