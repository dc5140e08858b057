"""The settings of healing and of fine-tuning: those of every training run, with other defaults."""

from typing import Annotated, Literal

from pydantic import Field

from secateur.training.distillation.objectives import DistilSettings
from secateur.training.settings import (
    AugmentSettings,
    Count,
    OptimizerSettings,
    Share,
    TrainSettings,
)

HeldOutShare = Annotated[float, Field(ge=0, lt=1)]


class HealSettings(TrainSettings):
    """Learning from the dense model.

    `held_out` is the share of images (at most 2,000) by which weights are judged. The last weights
    come out, since images that the cut was fitted to flatter those before training. `refit_head`
    solves for the classifier before training, where held-out images are the better for it.
    `lora_rank` trains low-rank updates instead of the weights themselves.
    """

    batch_size: Count = 32
    keep: Literal["best", "last"] = "last"
    distil: DistilSettings = DistilSettings()
    held_out: HeldOutShare = 0.2
    refit_head: bool = False
    lora_rank: Count | None = None


class FineTuneSettings(TrainSettings):
    """Learning labels with a dense model; see `HealSettings` for `held_out`."""

    batch_size: Count = 128
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=3e-4, weight_decay=0.05)
    augment: AugmentSettings = AugmentSettings()
    label_smoothing: Share = 0.1
    held_out: HeldOutShare = 0.05
