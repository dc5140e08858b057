"""One training session: the images, held-out images, folder and listeners that its runs share.

`heal` and `train` are one run, `learn` one per phase, and a polish a run without a folder. Each
names its model, objective and settings; the session supplies the rest, so that all of them train,
judge, stop and resume alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.data.images import ImageSet
from secateur.data.items import has_labels
from secateur.errors import UserError
from secateur.locks import sole
from secateur.progress import Progress
from secateur.statistics.divergence import LossName, spread
from secateur.training.distillation.cached_logits import cached_logits_for
from secateur.training.distillation.objectives import Distil, DistilSettings
from secateur.training.distillation.teacher import Teacher
from secateur.training.images.held_out import HeldOut, part_of
from secateur.training.images.sampler import Items, items_of
from secateur.training.judging import Judge
from secateur.training.lesson import Hook, Objective
from secateur.training.loop import FitReport, fit_
from secateur.training.machine import processes
from secateur.training.run import OnLog
from secateur.training.settings import AugmentSettings, TrainSettings

SPREAD_IMAGES = 128
"""Images from which the variance of a teacher's outputs is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Training and held-out images, with `labels` for a head of `classes` or without.

    `loss` compares outputs with a teacher's; `judge_labels` says whether the held-out images have
    labels, where these are others. With a `folder`, a run that was stopped resumes from
    its checkpoint there, unless `restart`. Training takes place on `device`, see
    `secateur.training.machine.training_device`.
    """

    train: object
    held: object | None
    labels: bool
    classes: int
    loss: LossName = "kl"
    judge_labels: bool | None = None
    folder: Path | None = None
    restart: bool = False
    device: torch.device | str | None = None
    progress: Progress | None = None
    on_log: OnLog | None = None

    @property
    def judged_by_labels(self) -> bool:
        """Whether the held-out images have labels."""
        return self.labels if self.judge_labels is None else self.judge_labels

    def judge(self, settings: TrainSettings, teacher: Teacher | None) -> HeldOut | None:
        """The judge on the held-out images; None where none are held out."""
        if self.held is None:
            return None
        return HeldOut(
            items=plain_items(self.held),
            labels=self.judged_by_labels,
            teacher=teacher,
            batch_size=settings.batch_size,
            workers=settings.workers,
            loss=self.loss,
        )

    def distillation(
        self, teacher: Teacher, distil: DistilSettings, settings: TrainSettings
    ) -> Distil:
        """The objective that learns from `teacher`, with its cached logits where they are kept."""
        cached = cached_logits_for(teacher, self.train, settings, distil.answers, self.classes)
        scale = self._scale(teacher) if distil.logit_weight else 1.0
        return Distil(teacher, distil, settings.label_smoothing, cached, self.loss, scale)

    def _scale(self, teacher: Teacher) -> float:
        """What squared errors are divided by: the variance of the teacher's outputs."""
        if self.loss != "mse":
            return 1.0
        device = next(teacher.model.parameters()).device
        loader: DataLoader[Any] = DataLoader(plain_items(self.spread(SPREAD_IMAGES)), 32)  # type: ignore[arg-type]
        images = (batch if isinstance(batch, Tensor) else batch[0] for batch in loader)
        outputs = [teacher.logits(images_BCHW.to(device)) for images_BCHW in images]
        return spread(torch.cat(outputs), self.loss)

    def spread(self, count: int) -> object:
        """At most `count` training images, spread evenly over all of them, without augmentation."""
        images = len(plain_items(self.train))
        count = min(images, count)
        return part_of(self.train, [i * images // count for i in range(count)])

    def stage(self, name: str) -> "Session":
        """The session of one of several runs: its folder in this one's, its name for progress."""
        listener = self.progress

        def told(_stage: str, done: int, total: int) -> None:
            if listener is not None:
                listener(name, done, total)

        folder = None if self.folder is None else self.folder / name
        return replace(self, folder=folder, progress=told)

    def alone(self) -> AbstractContextManager[None]:
        """While nobody else trains in the folder, if there is one; UserError where someone does."""
        if self.folder is None or not processes().is_main_process:
            return nullcontext()
        return sole(self.folder)

    def fit_(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        *,
        judge: Judge | None = None,
        hooks: Sequence[Hook] = (),
        about: Mapping[str, object] | None = None,
    ) -> FitReport:
        """Train `model` in place on the training images, see `secateur.training.loop.fit_`."""
        with self.alone():
            return fit_(
                model,
                self.train,
                objective,
                settings,
                classes=self.classes,
                labelled=self.labels,
                folder=self.folder,
                restart=self.restart,
                hooks=hooks,
                judge=judge,
                about=about,
                device=self.device,
                progress=self.progress,
                on_log=self.on_log,
            )


def plain_items(images: object) -> Items:
    """Images as they are evaluated, without augmentation."""
    return images if isinstance(images, ImageSet) else items_of(images, AugmentSettings())


def require_labels(images: object) -> None:
    """UserError for images without labels."""
    if has_labels(images):
        return
    kind = type(images).__name__
    where = images.source if isinstance(images, ImageSet) else f"the {kind} of images"
    raise UserError(
        f"{where} has no labels to learn from; give labelled images, or leave labels out "
        "(--no-labels)."
    )


@contextmanager
def on_device(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Models on the device that trains; afterwards each is back on the device it came from."""
    homes = [next(model.parameters()).device for model in models]
    for model in models:
        model.to(device)
    try:
        yield
    finally:
        for model, home in zip(models, homes, strict=True):
            model.to(home)
