"""Measure metrics of features on named images."""

from torch import nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.measurement.metrics import Inquiry, chosen, measure_all
from secateur.request.takes import takes
from secateur.verbs.load import open_data
from secateur.verbs.requests import MetricsRequest

Found = dict[str, dict[str, object]]


@takes(MetricsRequest)
def evaluate_metrics(model: nn.Module, images: object, request: MetricsRequest) -> Found:
    """Values of the metrics named, by metric; `secateur.measurement.metrics` lists them.

    `images` and `train` are paths or data strings, or any other input of `prune`; their labels need
    not be those of the model's head. Raises UserError for unknown metrics and for missing inputs,
    before any image is read.
    """
    train, reference, progress = request.train, request.reference, request.progress
    which = chosen(request.metrics, train=train is not None, reference=reference is not None)
    opened: dict[str, Batches] = {}
    counts: list[int] = []
    for split, source, most in (
        ("images", images, request.limit),
        ("train", train, request.train_limit),
    ):
        if source is None:
            continue
        reading = request.reading() | {"limit": most}
        opened[split], used = open_data(model, source, own_labels=True, **reading)
        if used.classes:
            counts.append(used.classes)
    if len(counts) == 2:
        check_classes(*counts)
    passes = sum(batches.images for batches in opened.values())
    done = 0

    def on_batch(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress("measure features", min(done, passes), passes)

    inquiry = Inquiry(
        model=model,
        images=opened["images"],
        train=opened.get("train"),
        reference=reference,
        seed=request.seed,
        on_batch=on_batch,
    )
    return measure_all(which, inquiry)


def check_classes(images: int, train: int) -> None:
    """UserError where both numbers of classes are known (not 0) and differ."""
    if images and train and images != train:
        raise UserError(
            f"the images have {images} classes but the train images {train}; give splits of one "
            "set, with a folder for every class in both."
        )
