"""What is learned: the labels, or what a teacher makes of the images, or both.

Legend: B batch, N tokens, D residual width, C classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.runner import Runner
from secateur.statistics.divergence import LossName, per_image
from secateur.training.distillation.cached_logits import CachedLogits
from secateur.training.distillation.losses import branch_loss, divergence, stream_loss, token_error
from secateur.training.distillation.teacher import Teacher, logits_of
from secateur.training.lesson import Lesson, Moment, Terms
from secateur.training.settings import NotNegative, Positive, Share, Strict


class DistilSettings(Strict):
    """How a student learns from its teacher; the loss is the weighted sum of its terms.

    `logits`: "kl" is T² KL(teacher ‖ student) at `temperature` T, for outputs that are no classes
    another loss (see `secateur.statistics.divergence.loss_for`); "hard" the cross-entropy of the
    teacher's class. `token_weight` weighs the error of the tokens after the last branch,
    `feature_weight` that of the stream after every branch, `label_weight` the cross-entropy of the
    labels. For the first `layerwise` of the budget each branch learns by itself. `answers` is a
    folder in which the teacher's logits are kept, to be looked up when a view of an image comes
    again, also by other runs; it needs `augment.views`, and no term but logits and labels.
    """

    logits: Literal["kl", "hard"] = "kl"
    logit_weight: NotNegative = 1.0
    temperature: Positive = 1.0
    token_weight: NotNegative = 1.0
    feature_weight: NotNegative = 0.0
    label_weight: NotNegative = 0.0
    layerwise: Share = 0.2
    answers: Path | None = None

    @model_validator(mode="after")
    def _kept_or_compared(self) -> Self:
        if self.answers is not None and self.needs_streams:
            raise ValueError(
                "answers keeps the teacher's outputs only; set token_weight, feature_weight and "
                "layerwise to 0"
            )
        return self

    @property
    def needs_streams(self) -> bool:
        """Whether the teacher must be taken apart."""
        return bool(self.token_weight or self.feature_weight or self.layerwise)


def supervised(label_smoothing: float = 0.0) -> Callable[[nn.Module, Lesson, Moment], Terms]:
    """The objective that learns labels, mixed ones as they were mixed."""

    def objective(model: nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        logits_BC = logits_of(model(lesson.images_BCHW))
        return {"labels": label_loss(logits_BC, lesson, label_smoothing)}

    return objective


def label_loss(logits_BC: Tensor, lesson: Lesson, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats; UserError where there are no labels."""
    if lesson.targets_BC is not None:
        return F.cross_entropy(logits_BC.float(), lesson.targets_BC)
    if lesson.labels_B is None:
        raise UserError("learning labels needs labelled images; these have none.")
    return F.cross_entropy(logits_BC.float(), lesson.labels_B, label_smoothing=label_smoothing)


def logit_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    settings: DistilSettings,
    loss: LossName = "kl",
    scale: float = 1.0,
) -> Tensor:
    """T² KL(teacher ‖ student) (Hinton et al., arXiv 1503.02531, section 2), or hard.

    Of another `loss`, its mean over images divided by `scale`.

    Hard: the cross-entropy of the teacher's most likely class (Touvron et al., arXiv 2012.12877,
    section 4).
    """
    if settings.logits == "hard":
        return F.cross_entropy(student_BC.float(), teacher_BC.argmax(-1))
    if loss != "kl":
        return per_image(teacher_BC.float(), student_BC.float(), loss).mean() / scale
    warm = settings.temperature
    return warm**2 * divergence(student_BC / warm, teacher_BC / warm)


def require_streams(teacher: Teacher, settings: DistilSettings) -> None:
    """UserError when the settings compare streams that do not match."""
    if settings.needs_streams and teacher.runner is None:
        raise UserError(
            f"the streams of reference and model cannot be compared ({teacher.mismatch}); set "
            "token_weight, feature_weight and layerwise to 0 to learn from its outputs alone."
        )


class Distil:
    """The objective that learns from a teacher.

    Its terms are `logits`, `tokens`, `features` and `labels`, as far as they have a weight, or
    `layerwise` alone in the layer-wise phase. Raises UserError when streams are to be compared
    that do not match.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: DistilSettings,
        label_smoothing: float = 0.0,
        cached: CachedLogits | None = None,
        loss: LossName = "kl",
        scale: float = 1.0,
    ) -> None:
        require_streams(teacher, settings)
        self.teacher = teacher
        self.settings = settings
        self.label_smoothing = label_smoothing
        self.cached = cached
        self.loss: LossName = loss
        self.scale = scale
        self._runner: Runner | None = None

    def __call__(self, model: nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        """The terms of the loss for one batch."""
        it = self.settings
        if moment.share < it.layerwise and len(runner := self._taken_apart(model)):
            target = self.teacher.see(lesson.images_BCHW)
            return {"layerwise": branch_loss(runner, lesson.images_BCHW, target)}
        if it.token_weight or it.feature_weight:
            return self._from_streams(self._taken_apart(model), lesson)
        logits_BC = logits_of(model(lesson.images_BCHW))
        wanted_BC = self._wanted(lesson) if it.logit_weight else None
        return self._from_logits(logits_BC, wanted_BC, lesson)

    def _wanted(self, lesson: Lesson) -> Tensor:
        if self.cached is None or lesson.rows_B is None:
            return self.teacher.logits(lesson.images_BCHW)
        return self.cached(lesson.images_BCHW, lesson.rows_B, self.teacher.logits)

    def _taken_apart(self, model: nn.Module) -> Runner:
        if self._runner is None or self._runner.model is not model:
            self._runner = Runner.of(model)
        return self._runner

    def _from_streams(self, runner: Runner, lesson: Lesson) -> Terms:
        it, prefix = self.settings, runner.anatomy.prefix_tokens
        target = self.teacher.see(lesson.images_BCHW)
        seen = runner.trace(lesson.images_BCHW)
        terms = dict(self._from_logits(seen.logits_BC, target.logits_BC, lesson))
        if it.token_weight:
            error = token_error(seen.stream_BND, target.stream_BND, prefix)
            terms["tokens"] = it.token_weight * error
        if it.feature_weight:
            terms["features"] = it.feature_weight * stream_loss(seen, target, prefix)
        return terms

    def _from_logits(self, logits_BC: Tensor, wanted_BC: Tensor | None, lesson: Lesson) -> Terms:
        it, terms = self.settings, {}
        if it.logit_weight and wanted_BC is not None:
            terms["logits"] = it.logit_weight * logit_loss(
                logits_BC, wanted_BC, it, self.loss, self.scale
            )
        if it.label_weight:
            loss = label_loss(logits_BC, lesson, self.label_smoothing)
            terms["labels"] = it.label_weight * loss
        if not terms:
            # Only streams are learned: the head still needs to be in the graph of this step.
            terms["logits"] = 0.0 * logits_BC.float().sum()
        return terms
