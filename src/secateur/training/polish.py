"""A short polish without labels: the pruned model learns from the dense one.

First every branch learns to give the dense stream after it, then the whole model to give the dense
output, on the calibration images alone: one run of the training loop that keeps no files. The
weights that come out are those with the least divergence on held-out images, the unpolished ones
among them.
Legend: B batch, C channels, H height, W width, n images.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import v2

from secateur.data.batches import Batches
from secateur.data.split import HOLD_EVERY, is_held
from secateur.errors import UserError
from secateur.models.caches import forget_cached_
from secateur.models.runner import Runner
from secateur.statistics.divergence import UNITS, LossName
from secateur.statistics.observe import frozen
from secateur.training.distillation.objectives import DistilSettings
from secateur.training.distillation.teacher import Teacher
from secateur.training.lesson import Hook, Moment, NotFinite
from secateur.training.loop import FitReport
from secateur.training.machine import processes, training_device
from secateur.training.run_length import RunLength
from secateur.training.session import Session, on_device
from secateur.training.settings import OptimizerSettings, ScheduleSettings, TrainSettings

IMAGE_BYTES = 1_500_000_000
"""Memory for images that are kept, so that nothing is decoded twice; later ones are left out."""

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishSettings:
    """How the polish trains; the learning rate was chosen on calibration images alone.

    `layerwise` and `warmup` are shares of the budget, `least_area` is the smallest crop's share of
    an image.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    batch_size: int = 32
    warmup: float = 0.1
    layerwise: float = 0.2
    temperature: float = 1.0
    token_weight: float = 1.0
    clip: float = 1.0
    least_area: float = 0.7
    flip: bool = True
    checks: int = 5

    def to_train(self, length: RunLength, batch_size: int, seed: int) -> TrainSettings:
        """The same as settings of the training loop: the best judged weights come out."""
        return TrainSettings(
            steps=length.steps,
            time=None if length.steps else length.text,
            batch_size=batch_size,
            optimizer=OptimizerSettings(
                learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip=self.clip
            ),
            schedule=ScheduleSettings(warmup=self.warmup),
            checks=self.checks,
            seed=seed,
            trackers=(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """KL(dense ‖ pruned) on the held-out images after a share of the budget, in nats."""

    share: float
    step: int
    kl: float
    kl_averaged: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishReport:
    """What a polish did. KL(dense ‖ pruned) is in nats, mean over `held_out` images.

    Where `loss` is another, what is called `kl` is that (see `secateur.statistics.divergence`).

    `best_step` is the step whose state was kept (0: the unpolished one), `averaged` whether it
    is the running average of the weights.
    """

    budget: str
    steps: int
    seconds: float
    images: int
    held_out: int
    kl_before: float
    kl_after: float
    best_step: int
    averaged: bool
    checks: tuple[Check, ...]
    settings: PolishSettings
    loss: LossName = "kl"

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name as plain data."""
        return asdict(self) | {"checks": [asdict(check) for check in self.checks]}


def require_polishable(model: nn.Module, images: int) -> None:
    """UserError, before any work, for too few images or weights too coarse to be trained."""
    if images < HOLD_EVERY:
        raise UserError(
            f"{images} calibration images are too few to polish: every {HOLD_EVERY}th batch is "
            f"held out, so at least {HOLD_EVERY} are needed; give more, or leave the polish out."
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"the polish trains in float32, but {name} is {parameter.dtype}; give model.float()"
                ", or leave the polish out."
            )


def polish_note(report: PolishReport) -> str:
    """A sentence on what a polish did."""
    named = "KL(dense ‖ pruned)" if report.loss == "kl" else f"the loss '{report.loss}'"
    return (
        f"Polished without labels: {report.steps} steps in {report.seconds:.0f} s on "
        f"{report.images} images; {named} on {report.held_out} held-out images went "
        f"from {report.kl_before:.3g} to {report.kl_after:.3g} {UNITS[report.loss]}."
    )


def polish_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    length: RunLength,
    seed: int = 0,
    on_step: OnStep | None = None,
    settings: PolishSettings | None = None,
    channels: Sequence[int] | None = None,
    loss: LossName = "kl",
) -> PolishReport:
    """Train `student`, cut from `teacher`, on the images of `batches`; leaves it in eval mode.

    `channels`: those of the teacher's stream that a narrower student kept. Lengths in steps repeat
    for the same seed. `on_step(done, total)` counts steps, or seconds. If training is interrupted
    or fails (UserError naming the step that is not finite), the student has its old weights back.
    """
    settings = settings or PolishSettings()
    require_polishable(student, batches.images)
    train_nCHW, held_nCHW = split(batches)
    shared, home = processes().num_processes, next(student.parameters()).device
    device = training_device(home, home if shared == 1 else None)
    batch_size = max(shared, min(settings.batch_size, len(train_nCHW)) // shared * shared)

    def told(_stage: str, done: int, total: int) -> None:
        if on_step is not None:
            unit = batch_size if length.steps else 1
            on_step(done // unit, max(1, total // unit))

    session = Session(
        train=Augmented(train_nCHW, settings.least_area, settings.flip),
        held=TensorDataset(held_nCHW),
        labels=False,
        classes=0,
        loss=loss,
        device=device,
        progress=told,
    )
    distil = DistilSettings(
        temperature=settings.temperature,
        token_weight=settings.token_weight,
        layerwise=settings.layerwise,
    )
    how = settings.to_train(length, batch_size, seed)
    kept = None if channels is None else torch.tensor(channels)
    with frozen(teacher, gradient=True), _trainable(student), on_device(device, teacher):
        dense = Teacher(model=teacher, view=None, runner=Runner.of(teacher), channels=kept)
        try:
            report = session.fit_(
                student,
                session.distillation(dense, distil, how),
                how,
                judge=session.judge(how, dense),
                hooks=[NoDropout(student)],
            )
        except NotFinite as error:
            raise UserError(
                f"the polish failed at step {error.step}: {error.found}; the model is as it was "
                "before the polish; leave the polish out, or look for images or weights with "
                "extreme values."
            ) from error
    return _reported(report, len(held_nCHW), settings, loss)


def _reported(
    report: FitReport, held_out: int, settings: PolishSettings, loss: LossName
) -> PolishReport:
    first, *scores = report.scores
    return PolishReport(
        budget=report.budget,
        steps=report.steps,
        seconds=report.seconds,
        images=report.images,
        held_out=held_out,
        kl_before=first.value,
        kl_after=min(score.value for score in report.scores),
        best_step=report.best_step,
        averaged=report.averaged,
        checks=tuple(
            Check(share=one.share, step=one.step, kl=one.value, kl_averaged=other.value)
            for one, other in zip(scores[::2], scores[1::2], strict=True)
        ),
        settings=settings,
        loss=loss,
    )


def split(batches: Batches, most_bytes: int = IMAGE_BYTES) -> tuple[Tensor, Tensor]:
    """Images to train on and images held out, both (n, C, H, W) on the CPU.

    Every fifth batch is held out, or every fifth image where there are fewer than five batches: the
    same that the cut front to back holds out. Images beyond `most_bytes` are left out.
    """
    kept: list[Tensor] = []
    size = 0
    for batch in batches:
        images_BCHW = batch.images_BCHW.cpu()
        size += images_BCHW.numel() * images_BCHW.element_size()
        if size > most_bytes and len(kept) >= HOLD_EVERY:
            break
        kept.append(images_BCHW)
    if len(kept) < HOLD_EVERY:
        kept = list(torch.cat(kept).split(1))
    held = [images for i, images in enumerate(kept) if is_held(i, len(kept))]
    train = [images for i, images in enumerate(kept) if not is_held(i, len(kept))]
    return torch.cat(train), torch.cat(held)


class Augmented(Dataset[Tensor]):
    """Images (C, H, W), each a random crop scaled back to its size and by chance its mirror image.

    The crop has the image's own shape and between `least_area` and all of its area.
    """

    def __init__(self, images_nCHW: Tensor, least_area: float, flip: bool) -> None:
        self.images_nCHW = images_nCHW
        height, width = images_nCHW.shape[-2:]
        self._crop = v2.RandomResizedCrop(
            (height, width), scale=(least_area, 1.0), ratio=(width / height, width / height)
        )
        self._flip = v2.RandomHorizontalFlip(0.5 if flip else 0.0)

    def __len__(self) -> int:
        return len(self.images_nCHW)

    def __getitem__(self, index: int) -> Tensor:
        image_CHW: Tensor = self._flip(self._crop(self.images_nCHW[index]))
        return image_CHW


class NoDropout(Hook):
    """Trains a model in eval mode: few images leave no room for dropout."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def before_step(self, moment: Moment) -> None:
        """Eval mode, and nothing kept that was worked out from weights before this step."""
        forget_cached_(self._model.eval())


@contextmanager
def _trainable(model: nn.Module) -> Iterator[None]:
    """All weights trainable; afterwards flags are as they were."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(True)
    try:
        yield
    finally:
        forget_cached_(model)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
