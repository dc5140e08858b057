"""The result of healing and fine-tuning: a model, the record of its training, the saved form."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import UserError
from secateur.measurement.accuracy import Accuracy
from secateur.models.family import read
from secateur.models.types import Cost
from secateur.report.training_page import render_training
from secateur.storage.base import Base, build
from secateur.storage.identify import remember_
from secateur.storage.save import save
from secateur.training.judgement import Judgement, judgement
from secateur.training.loop import FitReport
from secateur.verbs.load import DataUsed
from secateur.verbs.result import environment

CHECKPOINTS = ".training"
"""What the directory of checkpoints and logs is called, after that of the output."""


def training_folder(out: Path) -> Path:
    """The folder of checkpoints and logs of a run with the output `out`."""
    return out.with_name(out.name + CHECKPOINTS)


@dataclass(slots=True, kw_only=True)
class Trained:
    """A trained model. `earlier` is the provenance before this training, `about` this training.

    `accuracy` has, where it was measured, `before`, `pruned` (the trained model) and, with a
    reference, `dense`. `judged` compares the saved weights with those before training,
    by the images that `judge` names.
    """

    verb: str
    model: nn.Module
    base: Base | str
    report: FitReport
    data: DataUsed
    about: dict[str, Any]
    earlier: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    judge: str = "held_out"
    judged: Judgement | None = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str | None = None

    def __post_init__(self) -> None:
        """Compare the weights with those before; keep the provenance in the model."""
        source, fingerprint = self.data.source, self.data.fingerprint
        self.judged = judgement(
            self.report, source, fingerprint, self.earlier, self.judge, self.verb
        )
        if self.judged is not None and self.judged.worse:
            self.notes = [self.judged.note(), *self.notes]
        if isinstance(self.base, Base):
            remember_(self.model, self.base, {**self.earlier, self.verb: self._told()})

    @property
    def cost(self) -> Cost:
        """Parameters and MACs."""
        return read(self.model).cost()

    @property
    def cost_dense(self) -> Cost:
        """Parameters and MACs of the dense model."""
        if isinstance(self.base, str):
            return self.cost
        dense = build(self.base)
        return read(dense).cost()

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
            "judged": None if self.judged is None else asdict(self.judged),
            **self.about,
            "data": self._data(),
            "environment": environment(),
            "command": self.command,
            "notes": self.notes,
        }

    def _name(self) -> str | None:
        return f"{self.base.library}:{self.base.name}" if isinstance(self.base, Base) else None

    def _told(self) -> dict[str, Any]:
        """The entry of this training in the spec."""
        training = self.report.to_json()
        kept = ("budget", "steps", "seconds", "images", "processes", "best_step", "averaged")
        return {
            **self.about,
            **{key: training[key] for key in kept},
            "settings": self.report.settings.model_dump(mode="json", exclude_defaults=True),
            "data": self._data(),
            "judged": None if self.judged is None else asdict(self.judged),
            "device": environment()["device"],
            "command": self.command,
        }

    def _data(self) -> dict[str, Any]:
        return {
            "source": self.data.source,
            "images": self.data.images,
            "fingerprint": self.data.fingerprint,
            "unreadable": list(self.data.unreadable),
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> str | None:
        """Write the model, report.html and training.json into `out`, whole or not at all.

        The spec lists the settings that differ from the defaults, training.json all. A model saved
        there is replaced only with `overwrite`; the returned sentence describes it. Other files in
        `out` remain.

        UserError when `out` cannot be written or holds something else, and when the model cannot
        be rebuilt.
        """
        if isinstance(self.base, str):
            raise UserError(self.base)
        record = self.record()
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        return save(
            self.model,
            out,
            base=self.base,
            provenance={**self.earlier, self.verb: self._told()},
            results=_results(record, self.verb),
            extra_files={
                "training.json": text,
                "report.html": render_training(record | {"model": self._name()}, self.verb),
            },
            overwrite=overwrite,
        )


def _results(record: Mapping[str, Any], verb: str) -> dict[str, object]:
    """The measurements, for the card and the spec."""
    found: dict[str, object] = {key: record[key] for key in ("macs", "params")}
    accuracy = record["accuracy"] or {}
    for key in ("top1", "top5", "stderr"):
        if "dense" in accuracy and "pruned" in accuracy:
            found[key] = {"dense": accuracy["dense"][key], "pruned": accuracy["pruned"][key]}
        elif "pruned" in accuracy:
            found[key] = accuracy["pruned"][key]
    return found | {f"seconds of {verb}": record["seconds"]}
