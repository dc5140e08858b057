"""What a study's page shows: plain numbers, worked out before."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A budget on a curve: costs as shares of the dense model's, degradation over images and draws.

    `top1` in percent, `lost` dense minus pruned top-1 in points (None without labels), `kl` in
    nats, `latency` None where it was not measured.
    """

    budget: str
    macs: float
    latency: float | None
    kl: Span
    top1: Span | None
    lost: Span | None
    draws: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The points of one structure, score and repair, dearest first."""

    structure: str
    score: str
    repair: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRow:
    """What a repair changes: KL without minus KL with it, all scores but random together.

    `p` is corrected for all rows of the study (Holm).
    """

    structure: str
    budget: str
    repair: str
    kl_before: float
    kl_after: float
    saved: Span
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A score beside chance: KL of chance minus that of the score, all budgets together."""

    structure: str
    score: str
    repair: str
    kl: float
    better: Span
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleRow:
    """Spearman's correlation of a score of single layers with the degradation of leaving each out.

    Mean over calibration draws, with the least and the largest.
    """

    structure: str
    score: str
    layers: int
    rho: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model of a study. `dense` has macs, params, n, and top1 and stderr with labels.

    `dense_ms` is the median time of the dense model in the turns with pruned ones.
    """

    name: str
    source: str
    dense: dict[str, float | None]
    curves: tuple[Curve, ...]
    best: tuple[Curve, ...]
    repairs: tuple[RepairRow, ...]
    scores: tuple[ScoreRow, ...]
    oracle: tuple[OracleRow, ...]
    runtime: str | None = None
    dense_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A whole study. `best` of a model: per structure the score of least mean KL, last repair."""

    title: str
    counts: dict[str, int]
    cells: int
    models: tuple[ModelRecord, ...]
    setting: dict[str, str]
    unreachable: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
