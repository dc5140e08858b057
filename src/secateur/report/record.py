"""The record of a run as the pages read it: checked, typed, and with the sums they share."""

from collections.abc import Iterable
from itertools import groupby
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

Group = Literal["qk", "vo", "heads", "hidden"]
GROUPS: tuple[Group, ...] = ("qk", "vo", "heads", "hidden")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Pair(_Part):
    """A count (MACs, parameters, channels) of the dense and of the pruned model."""

    dense: int
    pruned: int

    @property
    def kept(self) -> float:
        """What is left as a share of what there was (1 where there was nothing)."""
        return self.pruned / self.dense if self.dense else 1.0


class AttentionSize(_Part):
    """Heads of an attention layer and dims per head."""

    heads: int
    qk: int
    vo: int


class MlpSize(_Part):
    """Neurons of an MLP."""

    hidden: int


Size = AttentionSize | MlpSize


class BranchRecord(_Part):
    """One branch before and after; `kept` is None when it was dropped."""

    id: str
    kind: Literal["attention", "mlp"]
    block: int
    dense: Size
    kept: Size | None
    macs: Pair
    params: Pair

    def share(self, group: Group) -> float | None:
        """Kept share of a group's size in this branch; None if dropped or without the group."""
        before = getattr(self.dense, group, None)
        return None if self.kept is None or not before else getattr(self.kept, group) / before


class AccuracyRecord(_Part):
    """See `secateur.measurement.accuracy.Accuracy`: percent, points, nats, shares of variance."""

    top1: float | None
    top5: float | None
    n: int
    stderr: float | None
    agreement: float | None
    kl: float | None
    change_stderr: float | None = None
    squared_error: float | None = None


class AccuracyPair(_Part):
    """Accuracy of both models; None where not measured. `before` is that before training."""

    dense: AccuracyRecord | None = None
    before: AccuracyRecord | None = None
    pruned: AccuracyRecord | None = None


class LatencyRow(_Part):
    """See `secateur.measurement.latency.Row`; of each setting the first row is the dense model."""

    model: str
    ratio: float
    median_ms: float
    iqr_ms: float
    runs: int
    batch_size: int
    runtime: str
    device: str
    threads: int


class DataRecord(_Part):
    """Calibration images: where from, how many, which."""

    source: str
    images: int
    fingerprint: str | None = None
    unreadable: tuple[str, ...] = ()


class TargetRecord(_Part):
    """A cost budget: the most that was allowed and what was reached."""

    unit: str
    limit: float
    reached: int | float
    shortfall_percent: float


class PolishRecord(_Part):
    """See `secateur.training.polish.PolishReport`: seconds, nats on held-out images."""

    budget: str
    steps: int
    seconds: float
    held_out: int
    kl_before: float
    kl_after: float


class ScoresRecord(_Part):
    """See `secateur.training.judging.Scores`: means over held-out images, lower is better."""

    step: int
    averaged: bool
    values: Annotated[dict[str, float], Field(min_length=1)]


class FitRecord(_Part):
    """See `secateur.training.loop.FitReport`: the log of a training run, seconds."""

    budget: str
    steps: int
    seconds: float
    images: int
    processes: int = 1
    best_step: int
    averaged: bool
    scores: tuple[ScoresRecord, ...] = ()
    history: tuple[dict[str, float], ...] = ()


class LearningRecord(_Part):
    """The training runs of learned masks by phase."""

    phases: dict[str, FitRecord]


class TrainingRecord(_Part):
    """A healed or fine-tuned model; see `secateur.verbs.training_result.Trained`."""

    model: str | None = None
    preset: str | None
    budget: str | None
    macs: Pair
    params: Pair
    stages: dict[str, float]
    accuracy: AccuracyPair = AccuracyPair()
    training: FitRecord
    reference: str | None = None
    data: DataRecord
    environment: dict[str, str]
    command: str | None = None
    notes: tuple[str, ...] = ()

    @field_validator("accuracy", mode="before")
    @classmethod
    def _measured(cls, value: object) -> object:
        return {} if value is None else value


class RunRecord(_Part):
    """A pruning run; `model` is what a person calls the dense model, `width` its stream's."""

    model: str | None = None
    preset: str
    preset_title: str
    preset_source: str
    budget: str
    target: TargetRecord | None = None
    groups: tuple[str, ...]
    repair: str
    replacement: str | None = Field(
        default=None, validation_alias=AliasChoices("replacement", "stand_in")
    )
    allocation: str
    seed: int
    macs: Pair
    params: Pair
    width: Pair | None = None
    predicted_loss: float
    branches: Annotated[tuple[BranchRecord, ...], Field(min_length=1)]
    accuracy: AccuracyPair = AccuracyPair()
    latency: tuple[LatencyRow, ...] = ()
    polish: PolishRecord | None = None
    learning: LearningRecord | None = None
    seconds: dict[str, float]
    data: DataRecord
    environment: dict[str, str]
    command: str | None = None
    notes: tuple[str, ...] = ()


def blocks_of(branches: Iterable[BranchRecord]) -> list[list[BranchRecord]]:
    """Branches in stream order, gathered into their blocks."""
    return [list(own) for _, own in groupby(branches, key=lambda branch: branch.block)]


def kept_share(branches: Iterable[BranchRecord], group: Group) -> float | None:
    """Units of a group that are left in the whole model, as a share; None if it has none.

    Dims of dropped heads and units of dropped branches count as gone.
    """
    before = after = 0
    for branch in branches:
        before += _units(branch.dense, group)
        after += 0 if branch.kept is None else _units(branch.kept, group)
    return after / before if before else None


def dropped(branches: Iterable[BranchRecord], kind: str) -> int:
    """How many branches of a kind are gone."""
    return sum(branch.kind == kind and branch.kept is None for branch in branches)


def latency_settings(rows: Iterable[LatencyRow]) -> list[list[LatencyRow]]:
    """Rows measured side by side: same runtime, batch size, device and threads."""
    settings: dict[tuple[str, int, str, int], list[LatencyRow]] = {}
    for row in rows:
        key = (row.runtime, row.batch_size, row.device, row.threads)
        settings.setdefault(key, []).append(row)
    return list(settings.values())


def _units(size: Size, group: Group) -> int:
    if isinstance(size, MlpSize):
        return size.hidden if group == "hidden" else 0
    return {"qk": size.heads * size.qk, "vo": size.heads * size.vo, "heads": size.heads}.get(
        group, 0
    )
