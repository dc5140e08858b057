"""Options that several verbs share beside their requests."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.errors import UserError
from secateur.request.parts import ModelPart
from secateur.request.say import MACHINE, REFERENCE, Say

if TYPE_CHECKING:
    from torch import nn

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm:NAME, hf:NAME_OR_DIR, torchvision:NAME, digits_vit (bundled), hub:ORG/NAME, or "
        "a directory saved by secateur.",
        show_default=False,
    ),
]
DATA_HELP = (
    "Image folder, parquet files, tar shards, hfds/NAME:SPLIT, or digits (bundled). Folders named "
    "by WordNet id, or like an ImageNet class, go to ImageNet's classes."
)


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where the model is and works, and how much of the machine is used."""

    device: Annotated[
        str | None,
        Say(
            "cpu, cuda, cuda:1, mps, ...; the CPU unless given, but training takes the accelerator "
            "it finds.",
            MACHINE,
            metavar="NAME",
        ),
    ] = None
    threads: Annotated[int | None, Say("CPU threads; all cores unless given.", MACHINE)] = None

    def check(self) -> str:
        """The device; UserError for one that cannot be used, before anything is opened."""
        from secateur.devices import usable_device

        if self.device is None:
            return "cpu"
        if (found := usable_device(self.device)).type == "meta":
            raise UserError("--device meta holds no values; name one that computes.")
        return str(found)

    def use(self) -> str:
        """The device; torch then uses as many CPU threads as wished."""
        import torch

        if self.threads is not None:
            if self.threads < 1:
                raise UserError(f"--threads must be at least 1, not {self.threads}.")
            torch.set_num_threads(self.threads)
        return self.check()


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """A model to compare with or to learn from."""

    reference: Annotated[
        str | None,
        Say(
            "The dense model to compare with or to learn from. Unless given: for learn, the model "
            "itself; else the dense original of a directory saved from a bundled model.",
            REFERENCE,
            metavar="MODEL",
        ),
    ] = None
    reference_checkpoint: Annotated[
        Path | None, Say("Weights of the reference.", REFERENCE, metavar="FILE")
    ] = None

    def __post_init__(self) -> None:
        """UserError for weights without a model."""
        if self.reference is None and self.reference_checkpoint is not None:
            raise UserError("--reference-checkpoint needs the name of its model: --reference.")

    def opened(self, model: "nn.Module") -> "nn.Module | None":
        """The model to learn from, built as `model` was where it is its base."""
        from secateur.verbs.heal import open_reference

        if self.reference is None:
            return None
        return open_reference(model, self.reference, self.reference_checkpoint)


def open_model(source: str, host: ModelPart, device: str = "cpu") -> "nn.Module":
    """The model named on the command line, with its weights and its preprocessing."""
    from secateur.verbs.load import load

    return load(source, device=device, **host.named())


def refuse_missing_images(*sources: object) -> None:
    """UserError for a path that is not there, before anything is loaded."""
    from secateur.verbs.load import refuse_missing

    for source in sources:
        if isinstance(source, str):
            refuse_missing(source)
