"""The inputs of `heal`, `train` and `learn`: model, images, images for evaluation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from secateur.data.classes import refuse_labels_beyond
from secateur.data.images import ImageSet, open_images
from secateur.data.items import as_items, count_of, has_labels, shape_of_items
from secateur.data.preprocessing import Preprocessing
from secateur.data.targets import multi_hot
from secateur.errors import UserError
from secateur.measurement.accuracy import Accuracy, paired_difference, summarize
from secateur.models.caches import copy_of
from secateur.models.family import read
from secateur.models.walk_check import require_walk
from secateur.progress import Progress
from secateur.request.parts import TrainingPart
from secateur.statistics.divergence import loss_for
from secateur.storage.base import Base
from secateur.storage.identify import base_of, provenance_of
from secateur.storage.weights import refuse_not_finite
from secateur.training.images.held_out import hold_out
from secateur.training.judgement import check_judge
from secateur.training.run import OnLog
from secateur.training.session import Session, require_labels
from secateur.verbs.evaluate import predicted, require_classifier
from secateur.verbs.load import DataUsed, open_data, refuse_other_images, unreadable_note
from secateur.verbs.result import Result


def copy_to_train(
    model: nn.Module | Result,
) -> tuple[nn.Module, Base | str, dict[str, JsonValue]]:
    """A copy to train, the named model of its dense original, and its provenance.

    UserError for weights that are not finite, and for another forward pass than that of the family.
    """
    if not isinstance(model, Result):
        read(model)
    found, base, earlier = _origin(model)
    refuse_not_finite(found.state_dict(), "the model")
    require_walk(found)
    return copy_of(found), base, earlier


def _origin(model: nn.Module | Result) -> tuple[nn.Module, Base | str, dict[str, JsonValue]]:
    if isinstance(model, Result):
        record = model.record()
        keys = ("preset", "preset_source", "budget", "groups", "seed", "data", "dense_logits")
        return model.model, model.base or "", {key: record[key] for key in keys}
    earlier: dict[str, JsonValue] = provenance_of(model)
    try:
        return model, base_of(model), earlier
    except UserError as error:
        return model, str(error), earlier


def open_session(
    model: nn.Module,
    images: object,
    *,
    seed: int,
    held_out: float,
    labels: bool,
    required: bool,
    loss: str | None = None,
    judge: str = "held_out",
    eval_images: object | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    folder: Path | None = None,
    restart: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    on_log: OnLog | None = None,
) -> tuple[Session, DataUsed, list[str]]:
    """Images to train `model` on, a share of them held out, their origin, and notes.

    With the judge `eval_data`, nothing is held out: the images for evaluation judge the weights.
    Their labels are learned if `labels` and there are any. UserError where labels are `required`
    and missing, of a head of one output, or wanted and of other classes than the head's; for images
    that cannot be read or that the model cannot process; and for too few.
    """
    check_judge(judge, eval_images)
    classes = read(model).num_classes
    compared = loss_for(classes, loss, multi_label=multi_hot(images))
    if classes == 1 and (labels and required):
        raise UserError(
            "the model has one output, which the cross-entropy of labels cannot train; learn from "
            "the dense model without labels (--no-labels)."
        )
    found, used, notes = open_training_images(
        images,
        Preprocessing.of(model),
        limit=limit,
        seed=seed,
        num_classes=(classes or None) if labels or required else None,
        skip_unreadable=skip_unreadable,
        labels_needed=labels or required,
        model=model,
    )
    if required:
        require_labels(found)
    judged_labels = None
    if judge == "eval_data":
        train, (held, judged_labels) = found, _judges(model, eval_images, classes, skip_unreadable)
    else:
        train, held = hold_out(found, used.images, held_out)
    session = Session(
        train=train,
        held=held,
        labels=labels and has_labels(found) and classes != 1,
        classes=classes,
        loss=compared,
        judge_labels=judged_labels,
        folder=folder,
        restart=restart,
        device=device,
        progress=progress,
        on_log=on_log,
    )
    return session, used, notes


def _judges(
    model: nn.Module, images: object, classes: int, skip_unreadable: bool
) -> tuple[object, bool]:
    """Images for evaluation that judge weights, and whether they have labels of the head."""
    found, _, _ = open_training_images(
        images,
        Preprocessing.of(model),
        limit=None,
        seed=0,
        num_classes=classes or None,
        skip_unreadable=skip_unreadable,
        labels_needed=False,
        model=model,
    )
    return found, classes > 1 and has_labels(found)


def open_training_images(
    images: object,
    preprocessing: Preprocessing,
    *,
    limit: int | None,
    seed: int,
    num_classes: int | None,
    skip_unreadable: bool,
    labels_needed: bool = True,
    model: nn.Module | None = None,
) -> tuple[object, DataUsed, list[str]]:
    """Images to train on, as `secateur.data.items.as_items` gives them, their source, and notes.

    Where labels are not `labels_needed`, images may be of other classes than the `num_classes` of
    the head, or come with targets of any kind. UserError for images that cannot be trained
    on, those that `model` cannot process included.
    """
    kind = type(images).__name__
    if isinstance(images, str | Path):
        images = open_images(
            images,
            preprocessing,
            limit=limit,
            seed=seed,
            num_classes=num_classes,
            labels_needed=labels_needed,
            skip_unreadable=skip_unreadable,
        )
    images = as_items(images, labels_needed=labels_needed)
    if isinstance(images, ImageSet):
        notes = [unreadable_note(images.unreadable)] if images.unreadable else []
        used = DataUsed(
            source=images.source,
            images=len(images),
            fingerprint=images.fingerprint,
            unreadable=images.unreadable,
        )
        return images, used, notes
    if isinstance(images, tuple) and num_classes:
        try:
            refuse_labels_beyond(int(images[1].max()), num_classes, "the tensor of labels")
        except UserError:
            if labels_needed:
                raise
            images = images[0]
    if model is not None:
        refuse_other_images(model, shape_of_items(images))
    return images, DataUsed(source=kind, images=count_of(images)), []


class Evaluation:
    """Images for evaluation, opened and checked before training, in each model's preprocessing.

    Raises UserError for images that cannot be read or are of other classes.
    """

    def __init__(self, models: Mapping[str, nn.Module], request: TrainingPart) -> None:
        images, skip = request.eval_images, request.skip_unreadable
        self._progress = request.progress
        self._dense_N: Tensor | None = None
        for model in models.values() if images is not None else ():
            require_classifier(model)
        opened = {
            key: open_data(model, images, skip_unreadable=skip)
            for key, model in models.items()
            if images is not None
        }
        self._opened = {key: batches for key, (batches, _) in opened.items()}
        self.notes = [
            f"Evaluation: {note}" for _, used in [*opened.values()][:1] for note in used.notes()
        ]

    def __call__(self, name: str, key: str, model: nn.Module) -> dict[str, Accuracy]:
        """Accuracy of a model on the images opened under `key`, filed as `name`; empty without."""
        if key not in self._opened:
            return {}
        found = predicted(model, self._opened[key], f"evaluate {name}", self._progress)
        accuracy, correct_N = summarize(found), found.correct_N
        if key == "dense":
            self._dense_N = correct_N
        elif correct_N is not None and self._dense_N is not None:
            _, error = paired_difference(correct_N, self._dense_N)
            accuracy = replace(accuracy, change_stderr=error)
        return {name: accuracy}
