"""Options of `learn`: which masks, shared how, searched how."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated

import typer

from secateur.cli.options import UnitOptions

MASKS = "Masks"


def _files(folder: str) -> str:
    """The names of extensions, found without importing anything."""
    found = (files("secateur") / "masks" / folder).iterdir()
    return ", ".join(sorted(f.name[:-3] for f in found if not f.name.startswith("_")))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOptions(UnitOptions):
    """Which masks are learned, and how."""

    sharing: Annotated[
        str,
        typer.Option(
            help=f"Which units share a mask: {_files('granularities')}.",
            rich_help_panel=MASKS,
        ),
    ] = "common_count"
    gates: Annotated[
        str,
        typer.Option(
            help=f"How a score becomes a mask: {_files('estimators')}.",
            rich_help_panel=MASKS,
        ),
    ] = "straight_through"
    criterion: Annotated[
        str,
        typer.Option(
            help="In which order scores start: spectral for its plans, a criterion, or none.",
            rich_help_panel=MASKS,
        ),
    ] = "spectral"
    search: Annotated[
        str | None,
        typer.Option(
            help=f"How masks are searched: {_files('strategies')}.",
            rich_help_panel=MASKS,
            show_default="projected",
        ),
    ] = None
    search_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the training in which masks are learned; 0 takes the criterion's.",
            rich_help_panel=MASKS,
            show_default=False,
        ),
    ] = None
    warmup_share: Annotated[
        float | None,
        typer.Option(
            help="Share in which the dense model is trained first; 0, or 0.4 from scratch.",
            rich_help_panel=MASKS,
            show_default=False,
        ),
    ] = None
