"""`secateur analyze`: what a model could do without, as a page and as numbers."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, is_first_process, progress_bar, verb
from secateur.cli.options import (
    DATA_HELP,
    IMAGES,
    DataOptions,
    HostOptions,
    MachineOptions,
    Model,
    Overwrite,
    open_model,
    use_threads,
)

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.report.analysis_record import AnalysisRecord
    from secateur.verbs.analyze import Analysis

ANALYSIS = "Analysis"


@verb
def analyze(
    model: Model,
    data: Annotated[str, typer.Option(help=f"Images; labels are not needed. {DATA_HELP}")],
    host: HostOptions,
    images: DataOptions,
    machine: MachineOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write analysis.html and analysis.json here.", show_default=False
        ),
    ] = None,
    effort: Annotated[
        str,
        typer.Option(help="How much is measured: quick or full.", rich_help_panel=ANALYSIS),
    ] = "quick",
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="NATS",
            help="Damage within which layers count as droppable; 0.1 unless given.",
            rich_help_panel=ANALYSIS,
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Between outputs: kl, mse, bce, cosine; else as suits the head.",
            rich_help_panel=ANALYSIS,
            show_default=False,
        ),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option("--latency/--no-latency", help="Time layers.", rich_help_panel=ANALYSIS),
    ] = True,
    runtime: Annotated[
        str,
        typer.Option(
            help="Where layers are timed: eager, compile, onnxruntime or openvino.",
            rich_help_panel=ANALYSIS,
        ),
    ] = "eager",
    latency_batch: Annotated[
        int, typer.Option(help="Images at a time for latency.", rich_help_panel=ANALYSIS)
    ] = 1,
    limit: Annotated[
        int, typer.Option(help="Images to use; 0 for all.", rich_help_panel=IMAGES)
    ] = 256,
    overwrite: Overwrite = False,
) -> Answer:
    """Show what a model could do without: every layer, head and dim, measured.

    Takes about 15 forward passes over 256 images for a model of 12 blocks; the page says how many.
    """
    from secateur.verbs.analyze import analyze as run
    from secateur.verbs.analyze import check_words
    from secateur.verbs.load import refuse_missing

    check_words(effort, runtime, latency_batch, tolerance, out, overwrite)
    refuse_missing(data)
    use_threads(machine)
    device = machine.check()
    opened = open_model(model, host, device)
    with progress_bar() as progress:
        found = run(
            opened,
            data,
            effort=effort,
            tolerance=tolerance,
            loss=loss,
            limit=limit or None,
            seed=images.seed,
            batch_size=images.batch_size,
            workers=images.workers,
            skip_unreadable=images.skip_unreadable,
            latency=latency,
            runtime=runtime,
            latency_batch=latency_batch,
            progress=progress,
        )
    found.record |= {"model": model, "command": "secateur " + shlex.join(sys.argv[1:])}
    replaced = None
    if out is not None and is_first_process():
        replaced = found.save(out, overwrite=overwrite)
    return Answer(
        data={"out": None if out is None else str(out), "replaced": replaced, **found.to_json()},
        show=lambda console: _show(console, found, out, replaced),
    )


def _show(console: "Console", found: "Analysis", out: Path | None, replaced: str | None) -> None:
    from secateur.cli.tables import plain_table, share, show_replaced
    from secateur.report.analysis_record import AnalysisRecord
    from secateur.report.analysis_words import damage_words
    from secateur.report.words import milliseconds, percent

    record = AnalysisRecord.model_validate(found.record)
    for sentence in found.findings:
        console.print(f"• {sentence}")
    table = plain_table("layer", "MACs", "time", f"damage, {record.unit}", "kept", "")
    for layer in record.layers:
        table.add_row(
            layer.id,
            percent(layer.macs / record.macs),
            "–" if layer.ms is None else milliseconds(layer.ms),
            damage_words(layer.damage, ""),
            share(None if layer.agreement is None else 100 * layer.agreement),
            "can go" if layer.droppable else "",
        )
    console.print(table)
    _show_scores(console, record)
    passes = sum(cost.passes or 0 for cost in record.costs)
    console.print(f"{passes:.0f} forward passes over {record.data.images} images.")
    for note in record.notes:
        console.print(f"Note: {note}")
    show_replaced(console, replaced)
    if out is not None:
        console.print(f"Saved to {out}; open {out / 'analysis.html'}.")


def _show_scores(console: "Console", record: "AnalysisRecord") -> None:
    known = [f"{s.name} {s.rho:.2f}" for s in record.scores if s.rho is not None]
    if known:
        console.print(f"Rank correlation of scores with damage: {', '.join(known)}.")
