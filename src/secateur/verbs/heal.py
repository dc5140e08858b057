"""Heal a pruned model: it learns from the dense one, with or without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from secateur.data.images import ImageSet
from secateur.data.items import has_labels
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.models.caches import copy_of
from secateur.models.family import family_of
from secateur.progress import Progress, timed
from secateur.storage.base import Base
from secateur.storage.fingerprint import agree, probe, tolerance
from secateur.storage.reference import dense_of, name_of_reference, reference_of
from secateur.storage.spec import Spec
from secateur.storage.weights import refuse_not_finite
from secateur.training.answers import answers_for
from secateur.training.head import refit_head_
from secateur.training.held_out import HeldOut, hold_out
from secateur.training.identity import digest
from secateur.training.loop import FitReport, fit_
from secateur.training.lora import attach_, merge_
from secateur.training.machine import require_accelerate, training_device
from secateur.training.objectives import Distil
from secateur.training.run import OnLog
from secateur.training.settings import AugmentSettings
from secateur.training.stream import Items, items_of
from secateur.training.teacher import Teacher, teacher_for
from secateur.training.verbs import HealSettings
from secateur.verbs.load import give_preprocessing_, load
from secateur.verbs.result import Result
from secateur.verbs.training_result import Scoring, Trained, open_training_images, origin


def heal(
    model: nn.Module | Result,
    images: object,
    *,
    reference: nn.Module | str | Path | None = None,
    labels: bool | None = None,
    settings: HealSettings | None = None,
    folder: Path | None = None,
    restart: bool = False,
    limit: int | None = None,
    skip_unreadable: bool = False,
    eval_images: object | None = None,
    progress: Progress | None = None,
    on_log: OnLog | None = None,
) -> Trained:
    """Return a copy of `model` that has learned from `reference`, its dense original.

    `model` is a pruned model or what `prune` returned. Without a reference, the dense model of a
    bundled one is found. A reference of another family or with other preprocessing sees the same
    images in its own way; then only its outputs can be learned. `images` are a path or data
    string, or a tensor, a pair of tensors, a map-style data set, a loader of one, or a list of
    images or batches; labels are used only if `labels`, or a `label_weight` in the settings, says
    so. With a `folder`, the run can be stopped and goes
    on from its checkpoint there; see `secateur.training.loop.fit_`. Everything that can be wrong
    with the request raises UserError before training begins.
    """
    settings = with_labels(settings or HealSettings(), labels)
    require_accelerate()
    student, base, earlier = origin(model)
    refuse_not_finite(student.state_dict(), "the model")
    seconds: dict[str, float] = {}
    notes: list[str] = []
    student = copy_of(student)
    dense = _reference(student, reference, notes)
    teacher = teacher_for(student, dense)
    objective = Distil(teacher, settings.distil, settings.label_smoothing)
    supervised = settings.distil.label_weight > 0
    classes = family_of(student).read(student).num_classes
    images, used, more = open_training_images(
        images,
        Preprocessing.of(student),
        limit=limit,
        seed=settings.seed,
        num_classes=classes if supervised else None,
        skip_unreadable=skip_unreadable,
        labels_needed=supervised,
        model=student,
    )
    require_labels(images, supervised)
    notes += more
    train, held = hold_out(images, used.images, settings.held_out)
    objective.answers = answers_for(teacher, train, settings, settings.distil.answers, classes)
    task = _Task(settings=settings, teacher=teacher, objective=objective, classes=classes)
    home, device = next(student.parameters()).device, training_device()
    student.to(device), dense.to(device)
    scoring = Scoring({"dense": dense, "own": student}, eval_images, skip_unreadable, progress)
    with timed(seconds, "measure"):
        accuracy = scoring("dense", "dense", dense) | scoring("before", "own", student)
    about = {"teacher": digest(dense)}
    report, ridge = _fit(task, student, train, held, about, folder, restart, progress, on_log)
    seconds["heal"] = report.seconds
    with timed(seconds, "measure"):
        accuracy |= scoring("pruned", "own", student)
    return Trained(
        verb="heal",
        model=student.to(home),
        base=base,
        report=report,
        data=used,
        about={"reference": _name(reference, base), "head_ridge": ridge},
        earlier=earlier,
        accuracy=accuracy,
        seconds=seconds,
        notes=notes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is the same for every step of a healing."""

    settings: HealSettings
    teacher: Teacher
    objective: Distil
    classes: int

    @property
    def supervised(self) -> bool:
        return self.settings.distil.label_weight > 0


def _fit(
    task: _Task,
    student: nn.Module,
    train: object,
    held: object | None,
    about: Mapping[str, object],
    folder: Path | None,
    restart: bool,
    progress: Progress | None,
    on_log: OnLog | None,
) -> tuple[FitReport, float | None]:
    """Refit the head if wanted, then train; returns the ridge that was chosen for the head."""
    settings, ridge = task.settings, None
    judge = None
    if held is not None:
        judge = HeldOut(
            items=_plain(held),
            labels=task.supervised,
            teacher=task.teacher,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )
    if settings.refit_head:
        if judge is None:
            raise UserError("refit_head needs held-out images to choose by; set held_out above 0.")
        ridge = refit_head_(student, task.teacher, _plain(train), judge, settings.batch_size)
    layers = attach_(student, settings.lora_rank, settings.seed) if settings.lora_rank else []
    if not layers:
        student.requires_grad_(True)
    try:
        report = fit_(
            student,
            train,
            task.objective,
            settings,
            classes=task.classes,
            labelled=task.supervised,
            folder=folder,
            restart=restart,
            judge=judge,
            about=about,
            progress=progress,
            on_log=on_log,
        )
    finally:
        merge_(layers)
        student.requires_grad_(True)
    return report, ridge


def open_reference(model: nn.Module, name: str, checkpoint: Path | None = None) -> nn.Module:
    """The model called `name`, built and shown images as `model` was where it is its base.

    Raises UserError as `secateur.load` does.
    """
    base = getattr(model, "secateur_base", None)
    named = isinstance(base, Base) and name in (
        f"{base.library}:{base.name}",
        f"{base.library}:{base.name.partition('.')[0]}",
    )
    if not isinstance(base, Base) or not named:
        return load(name, checkpoint=checkpoint)
    size, classes = base.arguments.get("img_size"), base.arguments.get("num_classes")
    side = size[0] if isinstance(size, list) else size
    dense = load(
        name,
        checkpoint=checkpoint,
        num_classes=classes if isinstance(classes, int) and checkpoint else None,
        img_size=side if isinstance(side, int) else None,
    )
    give_preprocessing_(dense, base.preprocessing)
    return dense


def with_labels(settings: HealSettings, labels: bool | None) -> HealSettings:
    """The settings with labels switched on or off; None leaves them."""
    if labels is None:
        return settings
    weight = (settings.distil.label_weight or 1.0) if labels else 0.0
    distil = settings.distil.model_copy(update={"label_weight": weight})
    return settings.model_copy(update={"distil": distil})


def require_labels(images: object, wanted: bool) -> None:
    """UserError when labels are wanted and there are none."""
    if wanted and not has_labels(images):
        where = f"the {type(images).__name__} of images"
        if isinstance(images, ImageSet):
            where = images.source
        raise UserError(
            f"{where} has no labels to learn from; give labelled images, or leave labels out "
            "(--no-labels)."
        )


def _plain(images: object) -> Items:
    """Images as they are evaluated, without augmentation."""
    return images if isinstance(images, ImageSet) else items_of(images, AugmentSettings())


def _reference(
    student: nn.Module, reference: nn.Module | str | Path | None, notes: list[str]
) -> nn.Module:
    """The dense model to learn from; a note where it is not the one that was pruned."""
    if reference is None:
        found, why = dense_of(student)
        if found is None:
            raise UserError(
                f"there is no model to learn from: {why.removeprefix('no reference: ')}"
            )
        return found
    dense = reference_of(reference)
    spec = getattr(student, "secateur_spec", None)
    known = spec.provenance.get("dense_logits") if isinstance(spec, Spec) else None
    expected = torch.tensor(known or [], dtype=torch.float64)
    if expected.numel() and family_of(student).matches(dense):
        found_logits = probe(dense, Preprocessing.of(dense).input_size)
        if not agree(found_logits, expected, tolerance(found_logits, torch.float32)):
            notes.append("The reference is not the model that was pruned: its outputs differ.")
    return dense


def _name(reference: nn.Module | str | Path | None, base: Base | str) -> str | None:
    if reference is None:
        return None if isinstance(base, str) else f"{base.library}:{base.name}"
    return name_of_reference(reference)
