"""How well a model classifies, by itself and beside a reference such as its dense original.

Shape suffixes: B batch, C classes (the head's outputs), N images.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn

from secateur.data.batches import Batches, as_batches
from secateur.errors import UserError
from secateur.models.caches import evaluating
from secateur.statistics.divergence import degradation, divergence

_TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracy over `n` images; what cannot be known without labels or a reference is None.

    `top1` and `top5`, in percent (`top5` only with at least 5 classes); `stderr`, the binomial
    standard error of `top1`, in percentage points; `agreement`, the percentage of images for
    which the reference predicts the same class; `kl`, the mean over images of
    KL(reference ‖ model), in nats; `change_stderr`, the standard error of `top1` minus that of
    the reference on the same images, in points. A model of one output predicts no class: of it
    only `squared_error` is known, the mean squared difference from the reference's output as a
    share of the variance of that.
    """

    top1: float | None
    top5: float | None
    n: int
    stderr: float | None
    agreement: float | None
    kl: float | None
    change_stderr: float | None = None
    squared_error: float | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """Return the fields by name, in their units; `squared_error` only of one output."""
        found = asdict(self)
        if self.squared_error is None:
            del found["squared_error"]
        return found


NOTHING = Accuracy(top1=None, top5=None, n=0, stderr=None, agreement=None, kl=None)
"""Of a model without a classifier, or on images of other classes than its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a model said about each image, on the CPU; None without labels or reference.

    `top1_N` and `reference_N` are the most likely classes, `labels_N` the true ones, `in_top5_N`
    says whether those are among the five most likely, `kl_N` is KL(reference ‖ model) in nats. Of
    models of one output there is only `outputs_N2`, theirs beside the reference's.
    """

    top1_N: Tensor
    labels_N: Tensor | None
    in_top5_N: Tensor | None
    reference_N: Tensor | None
    kl_N: Tensor | None
    outputs_N2: Tensor | None = None

    @property
    def correct_N(self) -> Tensor | None:
        """Whether each image's most likely class is the true one."""
        return None if self.labels_N is None else self.top1_N == self.labels_N


def evaluate(
    model: nn.Module,
    images: object,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> Accuracy:
    """Measure `model` on `images`: see `Accuracy` for what, `predict` for arguments and errors."""
    return summarize(
        predict(model, images, reference=reference, batch_size=batch_size, on_batch=on_batch)
    )


def predict(
    model: nn.Module,
    images: object,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> Predictions:
    """Run `model`, and `reference` if given, on anything `as_batches` takes.

    Both run in evaluation mode, each on its own device and in its own precision, and are then
    put back into the mode they were in. `on_batch` is called with the number of images of each
    finished batch.

    Raises UserError when an output is not finite, when a label is no output of the head, and
    when the two models have different numbers of outputs.
    """
    batches = as_batches(images, batch_size)
    models = [model] if reference is None else [model, reference]
    with evaluating(*models), torch.inference_mode():
        outputs = _outputs(model, reference, batches, on_batch)
        return _joined([_compare(*batch) for batch in outputs])


def evaluate_both(
    model: nn.Module,
    reference: nn.Module,
    images: object,
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Accuracy, Accuracy]:
    """Measure `model` beside `reference`, and `reference` by itself, running each once."""
    own: list[Predictions] = []
    other: list[Predictions] = []
    batches = as_batches(images, batch_size)
    with evaluating(model, reference), torch.inference_mode():
        for logits_BC, labels_B, reference_BC in _outputs(model, reference, batches, on_batch):
            own.append(_compare(logits_BC, labels_B, reference_BC))
            other.append(_compare(cast(Tensor, reference_BC), labels_B, None))
    return summarize(_joined(own)), summarize(_joined(other))


def _outputs(
    model: nn.Module,
    reference: nn.Module | None,
    batches: Batches,
    on_batch: Callable[[int], None] | None,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Logits of the model, labels and logits of the reference, batch by batch."""
    for batch in batches:
        logits_BC = _logits(model, batch.images_BCHW, "model")
        reference_BC = (
            None if reference is None else _logits(reference, batch.images_BCHW, "reference")
        )
        yield logits_BC, batch.labels_B, reference_BC
        if on_batch is not None:
            on_batch(len(batch.images_BCHW))


def _joined(parts: list[Predictions]) -> Predictions:
    return Predictions(
        top1_N=torch.cat([part.top1_N for part in parts]),
        labels_N=_cat([part.labels_N for part in parts]),
        in_top5_N=_cat([part.in_top5_N for part in parts]),
        reference_N=_cat([part.reference_N for part in parts]),
        kl_N=_cat([part.kl_N for part in parts]),
        outputs_N2=_cat([part.outputs_N2 for part in parts]),
    )


def summarize(predictions: Predictions) -> Accuracy:
    """Average predictions over their images."""
    n = len(predictions.top1_N)
    top1 = _percent(predictions.correct_N)
    agree_N = error = None
    if predictions.reference_N is not None:
        agree_N = predictions.top1_N == predictions.reference_N
        labels_N = predictions.labels_N
        if labels_N is not None:
            _, error = paired_difference(
                predictions.top1_N == labels_N, predictions.reference_N == labels_N
            )
    return Accuracy(
        top1=top1,
        top5=_percent(predictions.in_top5_N),
        n=n,
        stderr=None if top1 is None else math.sqrt(top1 * (100 - top1) / n),
        agreement=_percent(agree_N),
        kl=None if predictions.kl_N is None else predictions.kl_N.mean().item(),
        change_stderr=error,
        squared_error=_squared_error(predictions.outputs_N2),
    )


def _squared_error(outputs_N2: Tensor | None) -> float | None:
    if outputs_N2 is None:
        return None
    own_N1, reference_N1 = outputs_N2.double().split(1, dim=1)
    return degradation(reference_N1, own_N1, 1).divergence


def paired_difference(correct_a_N: Tensor, correct_b_N: Tensor) -> tuple[float, float]:
    """Return top-1 of a minus that of b over the same images, and its standard error, in points.

    The error is that of the mean of the per-image differences, which is smaller than that of two
    separate samples as far as the models are right and wrong on the same images.
    Raises ValueError when the two do not have the same, non-zero number of images.
    """
    if correct_a_N.shape != correct_b_N.shape or correct_a_N.numel() == 0:
        raise ValueError(
            f"not the same images: {list(correct_a_N.shape)} and {list(correct_b_N.shape)}"
        )
    difference_N = 100 * (correct_a_N.double() - correct_b_N.double())
    error = difference_N.std(correction=0) / math.sqrt(len(difference_N))
    return difference_N.mean().item(), error.item()


def _logits(model: nn.Module, images_BCHW: Tensor, role: str) -> Tensor:
    """Outputs [B, C] in fp32 on the CPU."""
    parameter = next(model.parameters(), None)
    if parameter is not None:
        images_BCHW = images_BCHW.to(parameter.device, parameter.dtype)
    output = model(images_BCHW)
    logits_BC = getattr(output, "logits", output)
    if not isinstance(logits_BC, Tensor) or logits_BC.ndim != 2:
        shape = list(logits_BC.shape) if isinstance(logits_BC, Tensor) else type(output).__name__
        raise UserError(
            f"the {role} {type(model).__name__} gives {shape} where [images, classes] was "
            "expected; give a model with a classification head."
        )
    logits_BC = logits_BC.float().cpu()
    if not logits_BC.isfinite().all():
        raise UserError(
            f"the {role} {type(model).__name__} gives outputs that are not finite (NaN or "
            "infinite); check its weights and their precision."
        )
    return logits_BC


def _compare(
    logits_BC: Tensor, labels_B: Tensor | None, reference_BC: Tensor | None
) -> Predictions:
    """Predictions of one batch."""
    classes = logits_BC.shape[1]
    if reference_BC is not None and reference_BC.shape[1] != classes:
        raise UserError(
            f"the reference has {reference_BC.shape[1]} outputs but the model has {classes}; "
            "compare models with the same head."
        )
    if classes == 1:
        return _of_one_output(logits_BC, reference_BC)
    in_top5_B = kl_B = None
    if labels_B is not None:
        labels_B = labels_B.cpu()
        if int(labels_B.max()) >= classes:
            raise UserError(
                f"the images have label {int(labels_B.max())} but the model has {classes} "
                "outputs; use images of the classes that the model was trained on."
            )
        if classes >= _TOP:
            in_top5_B = (logits_BC.topk(_TOP).indices == labels_B[:, None]).any(dim=1)
    if reference_BC is not None:
        kl_B = divergence(reference_BC.double(), logits_BC.double())
    return Predictions(
        top1_N=logits_BC.argmax(dim=1),
        labels_N=labels_B,
        in_top5_N=in_top5_B,
        reference_N=None if reference_BC is None else reference_BC.argmax(dim=1),
        kl_N=kl_B,
    )


def _of_one_output(outputs_B1: Tensor, reference_B1: Tensor | None) -> Predictions:
    """One number per image is no class, whatever the labels are."""
    both = None if reference_B1 is None else torch.cat([outputs_B1, reference_B1], dim=1)
    return Predictions(
        top1_N=outputs_B1.argmax(dim=1),
        labels_N=None,
        in_top5_N=None,
        reference_N=None,
        kl_N=None,
        outputs_N2=both,
    )


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    """All parts joined; they are all tensors or all None."""
    return None if parts[0] is None else torch.cat(cast(list[Tensor], parts))


def _percent(hits_N: Tensor | None) -> float | None:
    return None if hits_N is None else 100 * hits_N.double().mean().item()
