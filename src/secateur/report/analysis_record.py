"""The record of an analysis as its page reads it: checked and typed."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from secateur.report.record import DataRecord

Numbers = tuple[float | None, ...]
Matrix = tuple[Numbers, ...]
WAS_DAMAGE = Field(validation_alias=AliasChoices("degradation", "damage"))
"""The name in records of earlier versions."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class LayerRecord(_Part):
    """One branch: what it costs, and what the model loses without it (its mean stays).

    `degradation` is in the record's `unit`, `stderr` its standard error over images (0 in records
    that do not have it); `agreement` and `turn` (1 - mean cosine of the stream before
    and after) are shares of one; `update` is |update| / |stream|, root mean square; `droppable`
    says whether it is among the least damaging ones that can go together within the tolerance.
    `scores` are those of the criteria by name.
    """

    id: str
    kind: Literal["attention", "mlp"]
    block: int
    macs: int
    params: int
    ms: float | None
    degradation: Annotated[float, WAS_DAMAGE]
    stderr: float = 0.0
    agreement: float | None
    update: float
    turn: float
    droppable: bool
    scores: dict[str, float]


class BlockRecord(_Part):
    """A whole block left out, its mean kept."""

    id: str
    index: int
    degradation: Annotated[float, WAS_DAMAGE]
    agreement: float | None


class SeriesRecord(_Part):
    """More and more of one structure gone at once, all measured.

    `macs`, `params` are shares of the model that are gone, `ms` the predicted share of its time;
    `what` says what each point is; `order` lists what was left out, for layers and blocks.
    """

    structure: Literal["attention", "mlp", "layers", "blocks", "qk", "vo", "heads", "hidden"]
    what: tuple[str, ...]
    macs: tuple[float, ...]
    params: tuple[float, ...]
    ms: tuple[float | None, ...]
    degradation: Annotated[tuple[float, ...], WAS_DAMAGE]
    agreement: Numbers
    stderr: tuple[float, ...] = ()
    order: tuple[str, ...] = ()


class CurveRecord(_Part):
    """The degradation of a group of a branch at each size; `measured` sizes were, others follow."""

    owner: str
    group: Literal["qk", "vo", "heads", "hidden"]
    sizes: tuple[int, ...]
    degradation: Annotated[tuple[float, ...], WAS_DAMAGE]
    measured: tuple[int, ...]


class SimilarityRecord(_Part):
    """Similarity of the stream between depths; see `secateur.analysis.similarity`."""

    cosine: Matrix
    cka: Matrix
    points: tuple[int, ...]
    rank: tuple[float, ...]


class HeadsRecord(_Part):
    """CKA between the heads of one attention layer."""

    owner: str
    cka: Matrix


class SpectrumRecord(_Part):
    """The spectrum of one group; see `secateur.analysis.spectra`. `held` is its running sum."""

    owner: str
    group: Literal["qk", "vo", "hidden"]
    size: int
    effective: float
    most: int
    held: tuple[float, ...]


class InteractionsRecord(_Part):
    """Degradation of two branches together less that of each alone; null where not measured."""

    owners: tuple[str, ...]
    excess: Matrix
    together: Matrix


class ScoreRecord(_Part):
    """How well a criterion orders the branches by measured degradation: Spearman's ρ."""

    name: str
    title: str
    rho: float | None
    rho_attention: float | None
    rho_mlp: float | None


class ShareRecord(_Part):
    """Shares of one of the model's costs, by structure; they add up to 1."""

    what: Literal["params", "macs", "ms"]
    total: float
    parts: dict[str, float]


class CostRecord(_Part):
    """What a stage took: forward passes over all images, as counted, or seconds, or both."""

    stage: str
    passes: float | None
    seconds: float | None


class AnalysisRecord(_Part):
    """The redundancy of one model. `unit` is that of all degradations."""

    model: str | None = None
    family: str
    width: int
    tokens: int
    num_classes: int
    input_size: tuple[int, int, int]
    macs: int
    params: int
    ms: float | None
    setting: str | None
    unit: str
    tolerance: float
    effort: str
    seed: int
    probe_images: int
    data: DataRecord
    layers: Annotated[tuple[LayerRecord, ...], Field(min_length=1)]
    blocks: tuple[BlockRecord, ...]
    series: tuple[SeriesRecord, ...]
    curves: tuple[CurveRecord, ...]
    similarity: dict[str, SimilarityRecord]
    heads: tuple[HeadsRecord, ...]
    spectra: tuple[SpectrumRecord, ...]
    interactions: InteractionsRecord | None
    scores: tuple[ScoreRecord, ...]
    shares: tuple[ShareRecord, ...]
    costs: tuple[CostRecord, ...]
    refusals: dict[str, str]
    environment: dict[str, str]
    command: str | None = None
    notes: tuple[str, ...] = ()
