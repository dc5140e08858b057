"""Parts that the requests of several verbs share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from secateur.progress import Progress
from secateur.request.say import IMAGES, MODEL, TRAINING, UNITS, Say
from secateur.request.text import all_if_zero, names, numbers, path, text, widths

if TYPE_CHECKING:
    import torch

Overwrite = Annotated[
    bool, Say("Replace what secateur wrote to the place of the output; other files stay.")
]

# WHY without slots: classes with slots cannot be put together.


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """How a named model is built, its weights, and how its images are prepared."""

    num_classes: Annotated[int | None, Say("Outputs of the head.", MODEL)] = None
    img_size: Annotated[int | None, Say("Side of its images.", MODEL)] = None
    checkpoint: Annotated[
        str | Path | None,
        Say(
            "Weights: .safetensors, or .pth read without running code. Without it, the library's "
            "own.",
            MODEL,
            metavar="FILE",
            read=path,
        ),
    ] = None
    mean: Annotated[
        float | tuple[float, ...] | None,
        Say(
            "Instead of the mean in the model's configuration.",
            IMAGES,
            metavar="M[,M,M]",
            read=numbers,
        ),
    ] = None
    std: Annotated[
        float | tuple[float, ...] | None,
        Say(
            "Instead of the standard deviation in the model's configuration.",
            IMAGES,
            metavar="S[,S,S]",
            read=numbers,
        ),
    ] = None
    crop_pct: Annotated[float | None, Say("Share of the resized image that is kept.", IMAGES)] = (
        None
    )
    interpolation: Annotated[str | None, Say("bicubic, bilinear, ...", IMAGES)] = None

    def named(self) -> dict[str, Any]:
        """These fields, as `secateur.load` takes them."""
        return {name: getattr(self, name) for name in ModelPart.__dataclass_fields__}

    def preparation(self) -> dict[str, Any]:
        """What replaces parts of the model's own preprocessing, None where nothing does."""
        return {name: getattr(self, name) for name in ("mean", "std", "crop_pct", "interpolation")}


@dataclass(frozen=True, kw_only=True)
class TimingPart:
    """Where latency counts."""

    runtime: Annotated[
        str, Say("Where latency counts: eager, compile, onnxruntime or openvino.", UNITS)
    ] = "eager"
    latency_batch: Annotated[int, Say("Images at a time for latency.", UNITS)] = 1


@dataclass(frozen=True, kw_only=True)
class UnitsPart(TimingPart):
    """What may be removed, in which portions, and where latency counts."""

    groups: Annotated[
        Sequence[str] | None,
        Say(
            "Touch only these: qk, vo, heads, hidden, branch, block, width, tokens; else those of "
            "the method.",
            UNITS,
            metavar="A,B",
            read=names,
        ),
    ] = None
    protect: Annotated[
        Sequence[str],
        Say(
            "Branches or blocks that stay as they are, such as blocks.0,blocks.11.mlp.",
            UNITS,
            metavar="A,B",
            read=names,
        ),
    ] = ()
    align: Annotated[
        Mapping[str, int] | None,
        Say(
            "Widths are multiples of this. Default: qk=8,vo=8,hidden=16,width=16; 1 for learned "
            "masks, but for a budget in ms.",
            UNITS,
            metavar="G=N,...",
            read=widths,
        ),
    ] = None
    minimum: Annotated[
        Mapping[str, int] | None,
        Say(
            "Least widths, with the same defaults.",
            UNITS,
            metavar="G=N,...",
            flag="--min-width",
            read=widths,
        ),
    ] = None
    exact_tail: Annotated[
        bool | None,
        Say(
            "Compute the last layers for the tokens alone that the head reads, which changes no "
            "output. Unless given: under a budget in MACs or time, where the head reads the class "
            "token alone.",
            UNITS,
            flag="--exact-tail/--no-exact-tail",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImagesPart:
    """How images that are named by a path or data string are read."""

    limit: Annotated[
        int | None, Say("Images to use; 0 for all.", IMAGES, read=all_if_zero, default=0)
    ] = None
    batch_size: Annotated[int, Say("Images at a time.", IMAGES)] = 32
    workers: Annotated[int, Say("Processes that decode images.", IMAGES)] = 0
    skip_unreadable: Annotated[
        bool, Say("Leave out images that cannot be decoded, and name them.", IMAGES)
    ] = False
    seed: Annotated[int, Say("Of every random choice.", IMAGES)] = 0

    def reading(self) -> dict[str, Any]:
        """These fields, as `open_data` takes them."""
        own = ImagesPart.__dataclass_fields__
        return {name: getattr(self, name) for name in own}


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """Which images are learned, which judge the result, and where the run is kept."""

    limit: Annotated[
        int | None, Say("Images to learn; 0 for all.", IMAGES, read=all_if_zero, default=0)
    ] = None
    skip_unreadable: Annotated[
        bool, Say("Leave out images that cannot be decoded, and name them.", IMAGES)
    ] = False
    eval_images: Annotated[
        object | None,
        Say(
            "Labelled images on which accuracy is measured, before and after.",
            IMAGES,
            flag="--eval-data",
            read=text,
        ),
    ] = None
    judge: Annotated[
        str,
        Say(
            "By what weights are judged while training: held_out, a share of --data, or eval_data.",
            TRAINING,
        ),
    ] = "held_out"
    restart: Annotated[
        bool, Say("Begin anew where a run was stopped, instead of going on.", TRAINING)
    ] = False
    folder: Path | None = None
    device: "torch.device | str | None" = None
    progress: Progress | None = None
    on_log: Callable[[Mapping[str, float]], None] | None = None

    def session(self) -> dict[str, Any]:
        """What a training session takes of these fields."""
        kept = ("limit", "skip_unreadable", "folder", "restart", "progress", "on_log", "judge")
        some = [name for name in ("loss",) if hasattr(self, name)]
        return {name: getattr(self, name) for name in (*kept, *some, "eval_images")}
