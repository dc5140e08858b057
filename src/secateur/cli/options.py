"""Options that several verbs share, and how their text becomes values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.errors import UserError

if TYPE_CHECKING:
    from torch import nn

MODEL, IMAGES, UNITS = "Model", "Images", "Units"
REFERENCE, MACHINE = "Reference", "Machine"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, hf:NAME_OR_DIR, torchvision:NAME, digits_vit (bundled), hub:ORG/NAME, or "
        "a directory saved by secateur.",
        show_default=False,
    ),
]


Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what secateur wrote to the place of the output; other files stay.",
    ),
]


SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out images that cannot be decoded, and name them.",
        rich_help_panel=IMAGES,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """How a named model is built."""

    num_classes: Annotated[
        int | None,
        typer.Option(help="Outputs of the head.", rich_help_panel=MODEL, show_default=False),
    ] = None
    img_size: Annotated[
        int | None,
        typer.Option(help="Side of its images.", rich_help_panel=MODEL, show_default=False),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions(ShapeOptions):
    """Where a model's weights come from, and how its images are prepared."""

    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights: .safetensors, or .pth read without running code. Without it, the "
            "library's own.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M[,M,M]",
            help="Instead of the mean in the model's configuration.",
            rich_help_panel=IMAGES,
            show_default=False,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="S[,S,S]",
            help="Instead of the standard deviation in the model's configuration.",
            rich_help_panel=IMAGES,
            show_default=False,
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        typer.Option(
            help="Share of the resized image that is kept.",
            rich_help_panel=IMAGES,
            show_default=False,
        ),
    ] = None
    interpolation: Annotated[
        str | None,
        typer.Option(help="bicubic, bilinear, ...", rich_help_panel=IMAGES, show_default=False),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How images are read."""

    batch_size: Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=IMAGES)] = 32
    workers: Annotated[
        int, typer.Option(help="Processes that decode images.", rich_help_panel=IMAGES)
    ] = 0
    skip_unreadable: SkipUnreadable = False
    seed: Annotated[int, typer.Option(help="Of every random choice.", rich_help_panel=IMAGES)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Where the model is and works."""

    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="cpu, cuda, cuda:1, mps, ...; the CPU unless given, but training takes the "
            "accelerator it finds.",
            rich_help_panel=MACHINE,
            show_default=False,
        ),
    ] = None

    def check(self) -> str:
        """The device; UserError for one that cannot be used, before anything is opened."""
        from secateur.devices import usable_device

        if self.device is None:
            return "cpu"
        if (found := usable_device(self.device)).type == "meta":
            raise UserError("--device meta holds no values; name one that computes.")
        return str(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineOptions(DeviceOptions):
    """How much of the machine is used."""

    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads; all cores unless given.", rich_help_panel=MACHINE, show_default=False
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOptions:
    """What may be removed, in which portions, and where latency counts."""

    groups: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Touch only these: qk, vo, heads, hidden, branch, block, width; else those of "
            "the method.",
            rich_help_panel=UNITS,
            show_default=False,
        ),
    ] = None
    protect: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Branches or blocks that stay as they are, such as blocks.0,blocks.11.mlp.",
            rich_help_panel=UNITS,
            show_default=False,
        ),
    ] = None
    align: Annotated[
        str | None,
        typer.Option(
            metavar="G=N,...",
            help="Widths are multiples of this. Default: qk=8,vo=8,hidden=16,width=16; 1 for "
            "learned masks, but for a budget in ms.",
            rich_help_panel=UNITS,
            show_default=False,
        ),
    ] = None
    min_width: Annotated[
        str | None,
        typer.Option(
            metavar="G=N,...",
            help="Least widths, with the same defaults.",
            rich_help_panel=UNITS,
            show_default=False,
        ),
    ] = None
    runtime: Annotated[
        str,
        typer.Option(
            help="Where latency counts: eager, compile, onnxruntime or openvino.",
            rich_help_panel=UNITS,
        ),
    ] = "eager"
    latency_batch: Annotated[
        int, typer.Option(help="Images at a time for latency.", rich_help_panel=UNITS)
    ] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOptions:
    """A model to compare with or to learn from."""

    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The dense model to compare with or to learn from. Unless given: for learn, the "
            "model itself; else the dense original of a directory saved from a bundled model.",
            rich_help_panel=REFERENCE,
            show_default=False,
        ),
    ] = None
    reference_checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of the reference.",
            rich_help_panel=REFERENCE,
            show_default=False,
        ),
    ] = None

    @property
    def name(self) -> str | None:
        """The model named; UserError for weights without a model."""
        if self.reference is None and self.reference_checkpoint is not None:
            raise UserError("--reference-checkpoint needs the name of its model: --reference.")
        return self.reference


DATA_HELP = (
    "Image folder, parquet files, tar shards, hfds/NAME:SPLIT, or digits (bundled). Folders named "
    "by WordNet id go to ImageNet's classes."
)


def open_model(source: str, host: HostOptions, device: str = "cpu") -> "nn.Module":
    """The model named on the command line, with its weights and its preprocessing."""
    from secateur.verbs.load import load

    given = asdict(host)
    mean, std = (numbers(f"--{name}", given.pop(name)) for name in ("mean", "std"))
    return load(source, mean=mean, std=std, device=device, **given)


def refuse_missing_images(*sources: str | None) -> None:
    """UserError for a path that is not there, before anything is loaded."""
    from secateur.verbs.load import refuse_missing

    for source in sources:
        if source is not None:
            refuse_missing(source)


def use_threads(machine: MachineOptions) -> None:
    """Let torch use as many CPU threads as wished."""
    import torch

    if machine.threads is not None:
        if machine.threads < 1:
            raise UserError(f"--threads must be at least 1, not {machine.threads}.")
        torch.set_num_threads(machine.threads)


def numbers(option: str, text: str | None) -> float | tuple[float, ...] | None:
    """One number, or several with commas between them; UserError for anything else."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{option} {text} is no list of numbers; write for example 0.5 or 0.485,0.456,0.406."
        ) from None
    return values[0] if len(values) == 1 else values


def names(text: str | None) -> list[str] | None:
    """Names with commas between them."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def widths(option: str, text: str | None) -> Mapping[str, int]:
    """`hidden=32,qk=16` as a mapping; UserError for anything else."""
    sizes: dict[str, int] = {}
    for part in names(text) or []:
        name, equals, number = part.partition("=")
        if not equals or not number.strip().isdecimal():
            raise UserError(
                f"{option} {text} cannot be understood; write for example {option} hidden=32,qk=16."
            )
        sizes[name.strip()] = int(number)
    return sizes
