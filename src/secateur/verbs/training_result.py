"""What healing and fine-tuning give back: a model, the record of its training, how to save it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from torch import nn

from secateur.data.classes import refuse_labels_beyond
from secateur.data.images import ImageSet, open_images
from secateur.data.items import as_items, count_of, shape_of_items
from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError
from secateur.measurement.accuracy import Accuracy
from secateur.models.family import family_of
from secateur.models.types import Cost
from secateur.progress import Progress
from secateur.storage.base import Base, base_of, build
from secateur.storage.save import save
from secateur.storage.spec import Spec
from secateur.training.loop import FitReport
from secateur.verbs.evaluate import score
from secateur.verbs.load import DataUsed, open_data, refuse_other_images, unreadable_note
from secateur.verbs.result import Result, environment

CHECKPOINTS = ".training"
"""What the directory of checkpoints and logs is called, after that of the output."""


def training_folder(out: Path) -> Path:
    """Where checkpoints and logs of a run lie whose output goes to `out`."""
    return out.with_name(out.name + CHECKPOINTS)


@dataclass(slots=True, kw_only=True)
class Trained:
    """A trained model. `earlier` is what is known of the model before, `about` of this training.

    `accuracy` has, where it was measured, `before`, `pruned` (the model that comes out) and, where
    there is a reference, `dense`.
    """

    verb: str
    model: nn.Module
    base: Base | str
    report: FitReport
    data: DataUsed
    about: dict[str, Any]
    earlier: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str | None = None

    @property
    def cost(self) -> Cost:
        """Parameters and MACs."""
        return family_of(self.model).read(self.model).cost()

    @property
    def cost_dense(self) -> Cost:
        """Parameters and MACs of the dense model."""
        if isinstance(self.base, str):
            return self.cost
        dense = build(self.base)
        return family_of(dense).read(dense).cost()

    def record(self) -> dict[str, Any]:
        """Everything about the run as plain JSON data."""
        dense, kept = self.cost_dense, self.cost
        return {
            "preset": self.earlier.get("preset"),
            "budget": self.earlier.get("budget"),
            "macs": {"dense": dense.macs, "pruned": kept.macs},
            "params": {"dense": dense.params, "pruned": kept.params},
            "seconds": sum(self.seconds.values()),
            "stages": self.seconds,
            "accuracy": {key: value.to_json() for key, value in self.accuracy.items()} or None,
            "training": self.report.to_json(),
            **self.about,
            "data": {
                "source": self.data.source,
                "images": self.data.images,
                "fingerprint": self.data.fingerprint,
                "unreadable": list(self.data.unreadable),
            },
            "environment": environment(),
            "command": self.command,
            "notes": self.notes,
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> str | None:
        """Write the model and training.json into `out`, whole or not at all.

        The spec tells the settings that are not the defaults, training.json everything. A model
        saved there is replaced only with `overwrite`; what it was is returned in words, and files
        beside it stay.

        UserError when `out` cannot be written or holds something else, and when the model cannot
        be rebuilt.
        """
        if isinstance(self.base, str):
            raise UserError(self.base)
        record = self.record()
        kept = ("budget", "steps", "seconds", "images", "processes", "best_step", "averaged")
        told = {
            **self.about,
            **{key: record["training"][key] for key in kept},
            "settings": self.report.settings.model_dump(mode="json", exclude_defaults=True),
            "data": record["data"],
            "device": record["environment"]["device"],
            "command": self.command,
        }
        return save(
            self.model,
            out,
            base=self.base,
            provenance={**self.earlier, self.verb: told},
            results=_results(record, self.verb),
            extra_files={"training.json": json.dumps(record, indent=2, ensure_ascii=False) + "\n"},
            overwrite=overwrite,
        )


def _results(record: Mapping[str, Any], verb: str) -> dict[str, object]:
    """What was measured, as the card and the spec show it."""
    found: dict[str, object] = {key: record[key] for key in ("macs", "params")}
    accuracy = record["accuracy"] or {}
    for key in ("top1", "top5", "stderr"):
        if "dense" in accuracy and "pruned" in accuracy:
            found[key] = {"dense": accuracy["dense"][key], "pruned": accuracy["pruned"][key]}
        elif "pruned" in accuracy:
            found[key] = accuracy["pruned"][key]
    return found | {f"seconds of {verb}": record["seconds"]}


def origin(model: nn.Module | Result) -> tuple[nn.Module, Base | str, dict[str, JsonValue]]:
    """A model, what its dense original can be rebuilt from, and what is known of how it came."""
    if isinstance(model, Result):
        record = model.record()
        keys = ("preset", "preset_source", "budget", "groups", "seed", "dense_logits")
        return model.model, model.base or "", {key: record[key] for key in keys}
    spec = getattr(model, "secateur_spec", None)
    earlier = dict(spec.provenance) if isinstance(spec, Spec) else {}
    try:
        return model, base_of(model), earlier
    except UserError as error:
        return model, str(error), earlier


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
    the head, or come with targets of any kind. UserError for what cannot be trained on, also
    because `model` does not take it.
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


class Scoring:
    """Images for evaluation, opened and checked before training, as each model wants them.

    Raises UserError for images that cannot be read or are of other classes.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        images: object | None,
        skip_unreadable: bool,
        progress: Progress | None,
    ) -> None:
        self._progress = progress
        self._opened = {
            key: open_data(model, images, skip_unreadable=skip_unreadable)[0]
            for key, model in models.items()
            if images is not None
        }

    def __call__(self, name: str, key: str, model: nn.Module) -> dict[str, Accuracy]:
        """Accuracy of a model on the images opened under `key`, filed as `name`; empty without."""
        if key not in self._opened:
            return {}
        return {name: score(model, self._opened[key], f"evaluate {name}", self._progress)}
