"""Measure accuracy and latency of a pruned model beside the dense one."""

from collections.abc import Callable

from torch import nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.measurement.accuracy import Accuracy, Predictions, evaluate_both, predict
from secateur.measurement.accuracy import evaluate as measure_accuracy
from secateur.measurement.latency import bench
from secateur.models.family import read, require_plain
from secateur.progress import Progress
from secateur.request.takes import takes
from secateur.verbs.load import open_data
from secateur.verbs.requests import EvaluateRequest
from secateur.verbs.result import Result

SECONDS = 2.0
"""How long dense and pruned model take turns at least."""


@takes(EvaluateRequest)
def evaluate(model: nn.Module, images: object, request: EvaluateRequest) -> Accuracy:
    """Top-1 and top-5 accuracy, and agreement and KL divergence with `reference`.

    `images` is a path or data string, or any other input of `prune`; `limit` keeps that many
    images, spread over the classes. Without labels only the models are compared. Raises UserError
    for unreadable images and for classes other than those of the head.
    """
    if request.reference is not None:
        require_plain(request.reference)
    batches, _ = open_data(model, images, **request.reading())
    return score(model, batches, "evaluate", request.progress, reference=request.reference)


def require_classifier(model: nn.Module) -> None:
    """UserError for a model without a classifier, whose features have no accuracy."""
    if not read(model).num_classes:
        raise UserError(
            "the model has no classifier, so there is no accuracy on images for evaluation; leave "
            "them out, and compare features with evaluate --metrics features."
        )


def score(
    model: nn.Module,
    batches: Batches,
    stage: str,
    progress: Progress | None,
    *,
    reference: nn.Module | None = None,
) -> Accuracy:
    """Accuracy on batches that are open already, reporting progress as `stage`."""
    counted = _counter(stage, batches.images, progress)
    return measure_accuracy(model, batches, reference=reference, on_batch=counted)


def predicted(
    model: nn.Module, batches: Batches, stage: str, progress: Progress | None
) -> Predictions:
    """Predictions on batches that are open already, reporting progress as `stage`."""
    return predict(model, batches, on_batch=_counter(stage, batches.images, progress))


def _counter(stage: str, total: int, progress: Progress | None) -> Callable[[int], None]:
    """From images per batch to a report of all images so far."""
    done = 0

    def on_batch(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(stage, done, total)

    return on_batch


def measure_(
    result: Result,
    dense: nn.Module,
    images: Batches | None,
    *,
    latency: bool,
    progress: Progress | None = None,
) -> None:
    """Add the accuracy of both models on `images`, if any, and their latency, if requested."""
    if images is not None:
        counted = _counter("evaluate", images.images, progress)
        both = evaluate_both(result.model, dense, images, on_batch=counted)
        result.accuracy, result.accuracy_dense = both
    if latency:
        models = {"dense": dense, "pruned": result.model}
        device = str(next(dense.parameters()).device)
        rows = bench(
            models,
            result.before.input_size,
            runtimes=(result.task.request.runtime,),
            batch_sizes=(result.task.request.latency_batch,),
            max_seconds=SECONDS,
            device=device,
        )
        result.latency = [row.to_json() for row in rows]
