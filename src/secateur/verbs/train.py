"""Fine-tune a dense model on labelled images, in a form that every other verb can load."""

from pathlib import Path

from torch import nn

from secateur.data.images import ImageSet
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.models.family import read
from secateur.progress import timed
from secateur.request.takes import takes
from secateur.storage.adapt import load_to_train
from secateur.storage.spec import SPEC
from secateur.training.distillation.objectives import supervised
from secateur.training.heal_and_train import FineTuneSettings
from secateur.training.machine import training_device
from secateur.training.session import on_device, require_labels
from secateur.verbs.load import give_preprocessing_, load_shape
from secateur.verbs.requests import ToTrainRequest, TrainRequest
from secateur.verbs.training_inputs import (
    Evaluation,
    copy_to_train,
    open_session,
    open_training_images,
)
from secateur.verbs.training_result import Trained


@takes(TrainRequest)
def train(model: nn.Module, images: object, request: TrainRequest) -> Trained:
    """Train a copy of `model` on the labels of `images`; return it.

    The model must have a head for their classes, such as one from `open_to_train`. For images,
    `folder`, `judge`, `device` and errors see `secateur.heal`.
    """
    settings = request.settings or FineTuneSettings()
    student, base, earlier = copy_to_train(model)
    device = training_device(next(student.parameters()).device, request.device)
    session, used, notes = open_session(
        student.requires_grad_(True),
        images,
        seed=settings.seed,
        held_out=settings.held_out,
        labels=True,
        required=True,
        device=device,
        **request.session(),
    )
    seconds: dict[str, float] = {}
    with on_device(device, student):
        evaluation = Evaluation({"own": student}, request)
        report = session.fit_(
            student,
            supervised(settings.label_smoothing),
            settings,
            judge=session.judge(settings, teacher=None),
            about={} if session.judge_labels is None else {"judge": "eval_data"},
        )
        seconds["train"] = report.seconds
        with timed(seconds, "measure"):
            accuracy = evaluation("pruned", "own", student)
    return Trained(
        verb="train",
        model=student,
        base=base,
        report=report,
        data=used,
        about={},
        earlier=earlier,
        accuracy=accuracy,
        judge=request.judge,
        seconds=seconds,
        notes=notes + evaluation.notes,
    )


@takes(ToTrainRequest)
def open_to_train(
    source: str, images: str | Path, request: ToTrainRequest
) -> tuple[nn.Module, ImageSet]:
    """A named model with a head for the classes of `images`, and those images prepared for it.

    Classes are counted in the images unless `num_classes` is given. Raises UserError for images
    without labels and whatever `secateur.storage.adapt.load_to_train` refuses.
    """
    img_size, num_classes, seed = request.img_size, request.num_classes, request.seed
    if request.from_scratch and request.checkpoint is not None:
        raise UserError("give either from_scratch or a checkpoint, not both.")
    shape = load_shape(source, img_size=img_size)
    wanted = Preprocessing.of(shape).override(**request.preparation())
    opened, _, _ = open_training_images(
        images,
        wanted,
        limit=request.limit,
        seed=seed,
        num_classes=num_classes,
        skip_unreadable=request.skip_unreadable,
    )
    assert isinstance(opened, ImageSet)
    require_labels(opened)
    model = load_to_train(
        source,
        checkpoint=None if request.checkpoint is None else Path(request.checkpoint),
        num_classes=_classes(source, shape, num_classes or opened.label_count, num_classes),
        img_size=img_size,
        pretrained=not request.from_scratch,
        seed=seed,
    )
    give_preprocessing_(model, wanted)
    return model, opened


def _classes(source: str, shape: nn.Module, wanted: int, named: int | None) -> int | None:
    """The size of the new head; None where the model keeps its own."""
    has = read(shape).num_classes
    if source.startswith("timm:"):
        return wanted
    if has == wanted:
        return None
    if (Path(source) / SPEC).is_file() and named is not None:
        return wanted
    raise UserError(
        f"{source} has a head for {has} classes, but the images are of {wanted}; only models named "
        f"timm:NAME are given another head, and, by --num-classes {wanted}, directories saved by "
        "secateur."
    )
