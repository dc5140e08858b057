"""`secateur evaluate`: how well a model classifies, and how near it is to a reference."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.options import (
    DATA_HELP,
    IMAGES,
    DataOptions,
    HostOptions,
    MachineOptions,
    Model,
    open_model,
    use_threads,
)

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from secateur.measuring.accuracy import Accuracy

REFERENCE = "Reference"


@verb
def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help=f"Images to score. {DATA_HELP}")],
    host: HostOptions,
    images: DataOptions,
    machine: MachineOptions,
    limit: Annotated[
        int, typer.Option(help="Images to score; 0 for all.", rich_help_panel=IMAGES)
    ] = 0,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare predictions with this model. For a directory saved from a bundled model, "
            "its dense original unless given.",
            rich_help_panel=REFERENCE,
            show_default=False,
        ),
    ] = None,
    reference_checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of the reference.",
            rich_help_panel=REFERENCE,
            show_default=False,
        ),
    ] = None,
) -> Answer:
    """Measure top-1 and top-5 accuracy, and agreement and KL with a reference."""
    from secateur.data.preprocessing import Preprocessing
    from secateur.pipeline.measure import score
    from secateur.pipeline.opening import open_data, refuse_missing

    refuse_missing(data)
    use_threads(machine)
    opened = open_model(model, host)
    beside, note = _reference(opened, reference, reference_checkpoint, host)
    batches, used = open_data(
        opened,
        data,
        limit=limit or None,
        seed=images.seed,
        batch_size=images.batch_size,
        workers=images.workers,
        skip_unreadable=images.skip_unreadable,
    )
    with progress_bar() as progress:
        found = score(opened, batches, "evaluate", progress, reference=beside)
    prepared = Preprocessing.of(opened).to_json()
    return Answer(
        data={
            **found.to_json(),
            "unreadable": list(used.unreadable),
            "model": model,
            "data": used.source,
            "fingerprint": used.fingerprint,
            "preprocessing": prepared,
            "note": note,
        },
        show=lambda console: _show(console, model, found, used.unreadable, note, prepared),
    )


def _reference(
    model: "nn.Module", name: str | None, checkpoint: Path | None, host: HostOptions
) -> tuple["nn.Module | None", str]:
    """The model to compare with, and what to say about it."""
    from secateur.errors import UserError
    from secateur.pipeline.dense import dense_of

    if name is not None:
        own = replace(host, checkpoint=checkpoint, num_classes=None)
        return open_model(name, own), f"reference: {name}."
    if checkpoint is not None:
        raise UserError("--reference-checkpoint needs the name of its model: give --reference.")
    return dense_of(model)


def _show(
    console: "Console",
    model: str,
    found: "Accuracy",
    unreadable: tuple[str, ...],
    note: str,
    prepared: dict[str, object],
) -> None:
    from secateur.cli.tables import plain_table, share, top1
    from secateur.pipeline.opening import unreadable_note

    table = plain_table(model, f"{found.n} images")
    table.add_row("top-1", top1(found))
    table.add_row("top-5", share(found.top5))
    if found.kl is not None:
        table.add_row("agreement with the reference", share(found.agreement))
        table.add_row("KL from the reference", f"{found.kl:.4f} nats")
    console.print(table)
    if found.top1 is None:
        console.print("The images have no labels, so there is no accuracy.")
    if unreadable:
        console.print(unreadable_note(unreadable))
    console.print(note[0].upper() + note[1:])
    console.print("Images: " + ", ".join(f"{key} {value}" for key, value in prepared.items()) + ".")
