"""The requests of the verbs that read, evaluate and train a model; see also
`secateur.methods.request` for pruning and `secateur.masks.request` for learning masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.methods.request import DEFAULT
from secateur.methods.request import LIMIT as CALIBRATION
from secateur.progress import Progress
from secateur.request.parts import ImagesPart, ModelPart, Overwrite, TimingPart, TrainingPart
from secateur.request.say import IMAGES, LATENCY, MODEL, TRAINING, Say
from secateur.request.text import all_if_zero, names, path, text

if TYPE_CHECKING:
    import torch
    from torch import nn

    from secateur.models.statement import Statement
    from secateur.training.heal_and_train import FineTuneSettings, HealSettings

ANALYSIS, FEATURES = "Analysis", "Features"
LIMIT = 256
"""Images analysed of a path or data string unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class LoadRequest(ModelPart):
    """How a named model is opened, and on which device."""

    pretrained: bool | None = None
    device: "torch.device | str" = "cpu"
    family: "Statement | None" = None


@dataclass(frozen=True, kw_only=True)
class ToTrainRequest(ModelPart):
    """How a model is made ready for the classes of images."""

    from_scratch: Annotated[
        bool, Say("Begin with random weights and a head for the classes of the data.", MODEL)
    ] = False
    limit: int | None = None
    seed: int = 0
    skip_unreadable: bool = False

    def for_images(self, part: TrainingPart, seed: int) -> "ToTrainRequest":
        """The same with the images that a training run reads."""
        return replace(self, limit=part.limit, seed=seed, skip_unreadable=part.skip_unreadable)


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """A demonstration: `limit` training digits calibrate, `test_limit` (None: all) are scored."""

    out: Annotated[
        str | Path, Say("Where to save; an earlier demo is replaced.", metavar="DIR", read=path)
    ] = field(default=Path("secateur-demo"), kw_only=False)
    overwrite: Overwrite = False
    preset: str = DEFAULT
    limit: int | None = CALIBRATION
    test_limit: int | None = None
    latency: bool = True
    device: "torch.device | str" = "cpu"
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class InspectRequest(TimingPart):
    """How a model is described."""

    latency: Annotated[bool, Say("Also time every layer.", LATENCY)] = False
    runtime: Annotated[str, Say("Where: eager, compile, onnxruntime or openvino.", LATENCY)] = (
        "eager"
    )
    latency_batch: Annotated[int, Say("Images at a time.", LATENCY)] = 1
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class AnalyzeRequest(TimingPart, ImagesPart):
    """An analysis in full. `tolerance` None: that of the unit of the degradation."""

    effort: Annotated[str, Say("How much is measured: quick or full.", ANALYSIS)] = "quick"
    tolerance: Annotated[
        float | None,
        Say(
            "Degradation within which layers count as droppable; 0.1 unless given.",
            ANALYSIS,
            metavar="NATS",
        ),
    ] = None
    loss: Annotated[
        str | None,
        Say(
            "Between outputs: kl, mse, bce, cosine; else as suits the head.",
            ANALYSIS,
        ),
    ] = None
    latency: Annotated[bool, Say("Time layers.", ANALYSIS, flag="--latency/--no-latency")] = True
    runtime: Annotated[
        str,
        Say("Where layers are timed: eager, compile, onnxruntime or openvino.", ANALYSIS),
    ] = "eager"
    latency_batch: Annotated[int, Say("Images at a time for latency.", ANALYSIS)] = 1
    limit: Annotated[int | None, Say("Images to use; 0 for all.", IMAGES, read=all_if_zero)] = LIMIT
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(ImagesPart):
    """How a model is evaluated, and beside which reference."""

    limit: Annotated[
        int | None, Say("Images to score; 0 for all.", IMAGES, read=all_if_zero, default=0)
    ] = None
    reference: "nn.Module | None" = None
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class MetricsRequest(EvaluateRequest):
    """Which metrics of the features before the classifier are measured."""

    metrics: Annotated[
        Sequence[str],
        Say(
            "Of the features before the classifier: knn, linear_probe, retrieval, features.",
            FEATURES,
            metavar="A,B",
            read=names,
        ),
    ] = field(default=(), kw_only=False)
    train: Annotated[
        object | None,
        Say(
            "Labelled images that knn and linear_probe learn from.",
            FEATURES,
            flag="--train-data",
            read=text,
        ),
    ] = None
    train_limit: Annotated[
        int | None,
        Say("How many of them; 0 for all.", FEATURES, read=all_if_zero, default=0),
    ] = None


@dataclass(frozen=True, kw_only=True)
class HealRequest(TrainingPart):
    """How a pruned model is trained towards its dense original."""

    labels: Annotated[
        bool | None,
        Say(
            "Learn the images' labels too. Off unless the settings say so.",
            TRAINING,
            flag="--labels/--no-labels",
        ),
    ] = None
    loss: Annotated[
        str | None,
        Say(
            "Between outputs: kl, mse, bce, cosine; else as suits the head.",
            TRAINING,
        ),
    ] = None
    reference: "nn.Module | str | Path | None" = None
    settings: "HealSettings | None" = None


@dataclass(frozen=True, kw_only=True)
class TrainRequest(TrainingPart):
    """How a dense model is fine-tuned."""

    settings: "FineTuneSettings | None" = None


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """Where the cells of a study run, and which."""

    ray: Annotated[
        str | None,
        Say(
            "Spread the cells over Ray workers: 'local' for the cores of this machine, or the "
            "address of a cluster whose machines see the same files.",
            metavar="ADDRESS",
        ),
    ] = None
    jobs: Annotated[int | None, Say("Ray workers; one per core unless given.")] = None
    models: Annotated[
        Sequence[str] | None,
        Say("Only these of the file's models. Default: all.", metavar="NAME,...", read=names),
    ] = None
    only_page: Annotated[bool, Say("Only write the page from what is finished.", flag="--page")] = (
        False
    )
    progress: Progress | None = None
