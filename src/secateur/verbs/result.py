"""The result of a pruning run: the smaller model and the record of the run."""

import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.allocation.target import BudgetUse, budget_use
from secateur.allocation.types import Candidates, Plan
from secateur.measurement.accuracy import Accuracy
from secateur.measurement.within import require_within
from secateur.methods.task import Task
from secateur.methods.to_latency import LatencyRound
from secateur.models.types import Anatomy, AttentionShape, Cost, Shape
from secateur.storage.base import Base
from secateur.storage.identify import remember_
from secateur.training.polish import PolishReport
from secateur.verbs.load import DataUsed

PROVENANCE = (
    "preset",
    "preset_source",
    "budget",
    "groups",
    "repair",
    "replacement",
    "allocation",
    "seed",
    "polish",
    "data",
    "dense_logits",
)
"""Of the record, what a saved model tells of how it came about."""


@dataclass(slots=True, kw_only=True)
class Result:
    """A pruned model with its plan, costs, timings and, where measured, accuracy and latency.

    `seconds` has one entry per stage. `before` is the anatomy of the dense model, `base` the
    named model from which it can be rebuilt, or the reason why it cannot; `dense_logits` are its
    first logits for a fixed input, which identify it (see `secateur.storage.fingerprint`). `polish`
    is None without training; `latency_rounds` are those of a latency budget, `latency_best` the
    one whose model was kept.
    """

    model: nn.Module
    before: Anatomy
    after: Anatomy
    plan: Plan
    candidates: list[Candidates]
    task: Task
    data: DataUsed
    seconds: dict[str, float]
    base: Base | str | None = None
    dense_logits: list[list[float]] = field(default_factory=list)
    accuracy_dense: Accuracy | None = None
    accuracy: Accuracy | None = None
    latency: list[dict[str, Any]] = field(default_factory=list)
    latency_rounds: list[LatencyRound] = field(default_factory=list)
    latency_best: LatencyRound | None = None
    polish: PolishReport | None = None
    command: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """OverBudgetError for a model above its budget, which no method may return."""
        require_within(self.model, self.before, self.task.budget, self.task.request.goal)
        if isinstance(self.base, Base):
            record = self.record()
            remember_(self.model, self.base, {key: record[key] for key in PROVENANCE})

    @property
    def cost_dense(self) -> Cost:
        """Parameters and MACs of the dense model."""
        return self.before.cost()

    @property
    def cost(self) -> Cost:
        """Parameters and MACs of the pruned model."""
        return self.after.cost()

    @property
    def budget_use(self) -> BudgetUse | None:
        """Target and result, for a budget in MACs, parameters or milliseconds."""
        if (best := self.latency_best) is not None:
            return BudgetUse(
                unit="ms",
                limit=best.limit_ms,
                reached=best.measured_ms,
                shortfall_percent=100 * (1 - best.use),
            )
        return budget_use(self.before, self.cost, self.task.budget)

    def record(self) -> dict[str, Any]:
        """Everything about the run as plain JSON data, for reports, specs and machines."""
        return {
            "model": f"{self.base.library}:{self.base.name}"
            if isinstance(self.base, Base)
            else None,
            "preset": self.task.preset.name,
            "preset_title": self.task.preset.title,
            "preset_source": self.task.preset.source,
            "budget": self.task.request.goal,
            "target": None if self.budget_use is None else asdict(self.budget_use),
            "groups": list(self.task.groups),
            "repair": self.task.preset.repair,
            "replacement": self.task.preset.replacement,
            "allocation": self.task.preset.allocation,
            "seed": self.task.request.seed,
            "macs": {"dense": self.cost_dense.macs, "pruned": self.cost.macs},
            "params": {"dense": self.cost_dense.params, "pruned": self.cost.params},
            "width": {"dense": self.before.width, "pruned": self.after.width},
            "predicted_loss": self.plan.predicted_loss,
            "branches": [self._branch_record(branch.id) for branch in self.before.branches],
            "accuracy": {
                "dense": None if self.accuracy_dense is None else self.accuracy_dense.to_json(),
                "pruned": None if self.accuracy is None else self.accuracy.to_json(),
            },
            "latency": self.latency,
            "latency_rounds": [one.to_json() for one in self.latency_rounds],
            "polish": None if self.polish is None else self.polish.to_json(),
            "seconds": self.seconds,
            "data": {
                "source": self.data.source,
                "images": self.data.images,
                "fingerprint": self.data.fingerprint,
                "unreadable": list(self.data.unreadable),
            },
            "dense_logits": self.dense_logits,
            "environment": environment(),
            "command": self.command,
            "notes": self.notes,
        }

    def _branch_record(self, branch_id: str) -> dict[str, Any]:
        branch = self.before.branch(branch_id)
        kept = self.plan.shapes[branch_id]
        width = self.before.width_of(branch, self.plan.widths)
        dense_cost, priced = branch.cost(branch.shape), branch
        if self.task.exact_tail and kept is not None:
            priced = self.after.branch(branch_id)
        kept_cost = priced.cost(kept, width)
        return {
            "id": branch_id,
            "kind": branch.kind,
            "block": branch.block,
            "dense": _shape_json(branch.shape),
            "kept": _shape_json(kept),
            "macs": {"dense": dense_cost.macs, "pruned": kept_cost.macs},
            "params": {"dense": dense_cost.params, "pruned": kept_cost.params},
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> str | None:
        """Write spec.json, model.safetensors, README.md and report.html into `out`, or nothing.

        A model saved there is replaced only with `overwrite`; the returned sentence describes it.
        Other files in `out` remain. Raises UserError when `out` exists and was not written by
        secateur.
        """
        from secateur.verbs.saving import save_result

        return save_result(self, Path(out), overwrite=overwrite)


def environment() -> dict[str, str]:
    """Versions and machine of this process."""
    versions = {"python": platform.python_version()}
    for package in ("secateur", "torch", "timm"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions | {
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "executable": Path(sys.executable).name,
    }


def _shape_json(shape: Shape | None) -> dict[str, int] | None:
    if shape is None:
        return None
    if isinstance(shape, AttentionShape):
        return {"heads": shape.heads, "qk": shape.qk, "vo": shape.vo}
    return {"hidden": shape.hidden}
