"""Heal a pruned model: distillation from the dense model, with or without labels."""

from pathlib import Path

import torch
from torch import nn

from secateur.data.preprocessing import Preprocessing
from secateur.devices import require_double
from secateur.errors import UserError
from secateur.models.family import family_of
from secateur.models.walk_check import require_walk
from secateur.progress import timed
from secateur.request.takes import takes
from secateur.storage.base import Base
from secateur.storage.fingerprint import agree, probe, tolerance
from secateur.storage.reference import dense_of, name_of_reference, reference_of
from secateur.storage.spec import Spec
from secateur.training.distillation.objectives import Distil, require_streams
from secateur.training.distillation.teacher import teacher_for
from secateur.training.head import refit_head_
from secateur.training.heal_and_train import HealSettings
from secateur.training.identity import digest
from secateur.training.loop import FitReport
from secateur.training.machine import training_device
from secateur.training.session import Session, on_device, plain_items
from secateur.training.updates.lora import attach_, merge_
from secateur.verbs.load import give_preprocessing_, load
from secateur.verbs.requests import HealRequest
from secateur.verbs.result import Result
from secateur.verbs.training_inputs import (
    Evaluation,
    copy_to_train,
    open_session,
    refuse_for_teacher,
)
from secateur.verbs.training_result import Trained


@takes(HealRequest)
def heal(model: nn.Module | Result, images: object, request: HealRequest) -> Trained:
    """Train a copy of `model` towards the outputs of `reference`, its dense original; return it.

    `model` is a pruned model or the result of `prune`. The default reference of a bundled model is
    its dense original. A reference of another family, or with other preprocessing, receives the
    same images in its own preprocessing; then only its outputs can be learned. `images` are a path
    or data string, a tensor, a pair of tensors, a map-style data set, a loader of one, or a list of
    images or batches. Labels are used only with `labels` or with a `label_weight` in the settings.
    `loss` compares outputs with those of the reference, see `secateur.prune`. With a `folder`, an
    interrupted run resumes from its checkpoint; see `secateur.training.loop.fit_`. `judge`
    'held_out' judges weights by a share of the images, which is then excluded from training;
    'eval_data' by `eval_images`, whose accuracy is then biased upwards where the best weights are
    kept. The default `device` is that of the model, or the accelerator of the machine for a model
    on the CPU; the returned model is on the device of the one given. An invalid request raises
    UserError before training begins.
    """
    settings = with_labels(request.settings or HealSettings(), request.labels)
    student, base, earlier = copy_to_train(model)
    device = training_device(next(student.parameters()).device, request.device)
    if settings.refit_head:
        require_double(device, "refit_head")
    notes: list[str] = []
    dense = _reference(student, request.reference, notes)
    if family_of(student).matches(dense):
        require_walk(dense)
    teacher = teacher_for(student, dense)
    require_streams(teacher, settings.distil)
    supervised = settings.distil.label_weight > 0
    session, used, more = open_session(
        student,
        images,
        seed=settings.seed,
        held_out=settings.held_out,
        labels=supervised,
        required=supervised,
        device=device,
        **request.session(),
    )
    refuse_for_teacher(teacher, session)
    objective = session.distillation(teacher, settings.distil, settings)
    seconds: dict[str, float] = {}
    with on_device(device, student, dense):
        models = {"dense": dense, "own": student}
        evaluation = Evaluation(models, request)
        with timed(seconds, "measure"):
            accuracy = evaluation("dense", "dense", dense)
            accuracy |= evaluation("before", "own", student)
        report, ridge = _fit_(student, session, objective, settings)
        seconds["heal"] = report.seconds
        with timed(seconds, "measure"):
            accuracy |= evaluation("pruned", "own", student)
    return Trained(
        verb="heal",
        model=student,
        base=base,
        report=report,
        data=used,
        about={"reference": _name(request.reference, base), "head_ridge": ridge},
        earlier=earlier,
        accuracy=accuracy,
        judge=request.judge,
        seconds=seconds,
        notes=notes + more + evaluation.notes,
    )


def _fit_(
    student: nn.Module, session: Session, objective: Distil, settings: HealSettings
) -> tuple[FitReport, float | None]:
    """Refit the head if requested, then train; returns the chosen ridge of the head."""
    teacher, ridge = objective.teacher, None
    about = {"teacher": digest(teacher.model)}
    if session.judge_labels is not None:
        about["judge"] = "eval_data"
    if session.loss != "kl":
        about["loss"] = session.loss
    judge = session.judge(settings, teacher)
    if settings.refit_head:
        if judge is None:
            raise UserError("refit_head needs held-out images to choose by; set held_out above 0.")
        items = plain_items(session.train)
        ridge = refit_head_(student, teacher, items, judge, settings.batch_size)
    layers = attach_(student, settings.lora_rank, settings.seed) if settings.lora_rank else []
    if not layers:
        student.requires_grad_(True)
    try:
        report = session.fit_(student, objective, settings, judge=judge, about=about)
    finally:
        merge_(layers)
        student.requires_grad_(True)
    return report, ridge


def open_reference(model: nn.Module, name: str, checkpoint: Path | None = None) -> nn.Module:
    """The model called `name`, with the size and preprocessing of `model` where it is its base.

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


def _reference(
    student: nn.Module, reference: nn.Module | str | Path | None, notes: list[str]
) -> nn.Module:
    """The dense model to learn from; adds a note where another model was pruned."""
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
