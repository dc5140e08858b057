"""What a model's features are good for. One file per metric.

@metric("sparsity", title="Share of features near zero", needs=())
def sparsity(inquiry: Inquiry) -> Values:
    return {"share": float((inquiry.features().pooled_nE.abs() < 1e-3).float().mean())}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.measurement.features import Features, OnBatch, extract
from secateur.registry import Registry

Need = Literal["labels", "train", "reference"]
Values = Mapping[str, float | int | None]


@dataclass(slots=True, kw_only=True)
class Inquiry:
    """What is measured, on what. Features are extracted when first asked for, once per split.

    `train` are labelled images from which a metric may learn; `reference` is the dense model.
    """

    model: nn.Module
    images: Batches
    train: Batches | None = None
    reference: nn.Module | None = None
    seed: int = 0
    on_batch: OnBatch | None = None
    known: dict[str, Features] = field(default_factory=dict)

    def features(self, split: Literal["images", "train"] = "images") -> Features:
        """Pooled features and labels of one split."""
        if split not in self.known:
            batches = self.images if split == "images" else self.train
            assert batches is not None, "checked before"
            self.known[split] = extract(self.model, batches, self.on_batch)
        return self.known[split]


Measure = Callable[[Inquiry], Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A named metric. `needs` says what must be there: labels of the images measured on, labelled
    training images, a reference model."""

    name: str
    title: str
    needs: tuple[Need, ...]
    measure: Measure


metrics: Registry[Metric] = Registry("metric", "secateur.measurement.metrics")


def metric(name: str, *, title: str, needs: tuple[Need, ...]) -> Callable[[Measure], Measure]:
    """Register a function as a metric; it returns numbers by name, None where one has no value."""

    def file(measure: Measure) -> Measure:
        metrics.register(name)(Metric(name=name, title=title, needs=needs, measure=measure))
        return measure

    return file


def chosen(names: Sequence[str], *, train: bool, reference: bool) -> list[Metric]:
    """The metrics of these names; UserError for unknown ones and for what would be missing."""
    found = [metrics.get(name) for name in dict.fromkeys(names)]
    for each in found:
        if "train" in each.needs and not train:
            raise UserError(
                f"metric '{each.name}' learns from labelled images; name them with --train-data."
            )
        if "reference" in each.needs and not reference:
            raise UserError(
                f"metric '{each.name}' compares with another model; name it with --reference."
            )
    return found


def measure_all(which: Sequence[Metric], inquiry: Inquiry) -> dict[str, dict[str, object]]:
    """Measure metrics one after the other; UserError where labels are missing, before any pass."""
    for each in which:
        if "labels" in each.needs and not inquiry.images.labelled:
            raise UserError(f"metric '{each.name}' needs labels, but the images have none.")
        if "train" in each.needs and inquiry.train is not None and not inquiry.train.labelled:
            raise UserError(f"metric '{each.name}' needs labels, but the train images have none.")
    return {each.name: dict(each.measure(inquiry)) for each in which}
