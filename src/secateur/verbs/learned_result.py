"""The result of learned masks: the smaller model, the record of its masks, the saved form."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.masks.removal.summary import Compression, Removability
from secateur.masks.settings import Phase
from secateur.masks.task import LearnTask
from secateur.training.loop import FitReport
from secateur.verbs.result import Result


@dataclass(slots=True, kw_only=True)
class Learned:
    """`result` is that of `prune`: model, plan, costs, accuracy, notes.

    `reference` is the name of a teacher other than the dense model, if any. `removability` was
    computed before training; `searched` are the masked and the removable parameters at the end of
    the search, `compression` those after the projection onto the budget; `phases` are the training
    runs in order.
    """

    result: Result
    task: LearnTask
    reference: str | None = None
    removability: Removability
    searched: Compression
    compression: Compression
    phases: dict[Phase, FitReport]

    @property
    def model(self) -> nn.Module:
        """The smaller model, an ordinary module in eval mode."""
        return self.result.model

    def record(self) -> dict[str, Any]:
        """Everything about the run as plain JSON data; `masks` extends that of `prune`."""
        return {**self.result.record(), "learning": self._learning()}

    def save(self, out: str | Path, *, overwrite: bool = False) -> str | None:
        """Write the ordinary saved form, with training.json and curves in the report, or nothing.

        `overwrite` and the returned sentence are those of `Result.save`.
        """
        from secateur.verbs.saving import save_result

        learning = self._learning()
        told = {key: value for key, value in learning.items() if key != "phases"}
        record = self.record()
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        return save_result(
            self.result,
            Path(out),
            more={"learning": told},
            files={"training.json": text},
            shown=record,
            overwrite=overwrite,
        )

    def _learning(self) -> dict[str, Any]:
        request = self.task.request
        return {
            "sharing": request.sharing,
            "gates": request.gates,
            "criterion": request.criterion,
            "reference": self.reference,
            "scores": self.removability.scores,
            "removability": self.removability.to_json(),
            "search_end": self.searched.to_json(),
            "masked_percent": self.compression.masked_percent,
            "removed_percent": self.compression.removed_percent,
            "compression": self.compression.to_json(),
            "steps": {phase: report.steps for phase, report in self.phases.items()},
            "settings": self.task.settings.model_dump(mode="json"),
            "phases": {phase: report.to_json() for phase, report in self.phases.items()},
        }
