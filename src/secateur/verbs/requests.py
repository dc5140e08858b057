"""What may be asked of the verbs that read, judge and train a model; see also
`secateur.methods.request` for pruning and `secateur.masks.request` for learning masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.progress import Progress
from secateur.request.parts import ImagesPart, TimingPart, TrainingPart
from secateur.request.say import IMAGES, LATENCY, TRAINING, Say
from secateur.request.text import all_if_zero

if TYPE_CHECKING:
    from torch import nn

    from secateur.training.verbs import FineTuneSettings, HealSettings

ANALYSIS = "Analysis"
LIMIT = 256
"""Images analysed of a path or data string unless told otherwise."""


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
            "Damage within which layers count as droppable; 0.1 unless given.",
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
    """How a model is judged, and beside which."""

    limit: Annotated[
        int | None, Say("Images to score; 0 for all.", IMAGES, read=all_if_zero, default=0)
    ] = None
    reference: "nn.Module | None" = None
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class HealRequest(TrainingPart):
    """How a pruned model learns from its dense original."""

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
    judge: Annotated[
        str,
        Say(
            "By what weights are judged while training: held_out, a share of --data, or eval_data.",
            TRAINING,
        ),
    ] = "held_out"
    reference: "nn.Module | str | Path | None" = None
    settings: "HealSettings | None" = None


@dataclass(frozen=True, kw_only=True)
class TrainRequest(TrainingPart):
    """How a dense model is fine-tuned."""

    judge: Annotated[
        str,
        Say(
            "By what weights are judged while training: held_out, a share of --data, or eval_data.",
            TRAINING,
        ),
    ] = "held_out"
    settings: "FineTuneSettings | None" = None
