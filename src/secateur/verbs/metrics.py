"""Measure metrics of features on images as users name them."""

from collections.abc import Sequence

from torch import nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.measurement.metrics import Inquiry, chosen, measure_all
from secateur.progress import Progress
from secateur.verbs.load import open_data

Found = dict[str, dict[str, object]]


def evaluate_metrics(
    model: nn.Module,
    images: object,
    metrics: Sequence[str],
    *,
    train: object | None = None,
    reference: nn.Module | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: Progress | None = None,
) -> Found:
    """Values of the metrics named, by metric; `secateur.measurement.metrics` lists them.

    `images` and `train` are paths or data strings, or anything else that `prune` takes; their
    labels need not be those of the model's head. Raises UserError for unknown metrics and for
    what they lack, before any image is looked at.
    """
    which = chosen(metrics, train=train is not None, reference=reference is not None)
    opened: dict[str, Batches] = {}
    counts: list[int] = []
    for split, source, most in (("images", images, limit), ("train", train, train_limit)):
        if source is None:
            continue
        opened[split], used = open_data(
            model,
            source,
            limit=most,
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            skip_unreadable=skip_unreadable,
            own_labels=True,
        )
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
        seed=seed,
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
