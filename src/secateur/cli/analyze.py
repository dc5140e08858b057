"""`secateur analyze`: the redundancy of a model, as a page and as numbers."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.cli.common import Answer, is_first_process, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    Model,
    open_model,
    refuse_missing_images,
)
from secateur.request.parts import ModelPart, Overwrite
from secateur.request.say import Say
from secateur.verbs.requests import AnalyzeRequest

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.report.analysis_record import AnalysisRecord
    from secateur.verbs.analyze import Analysis


@verb
def analyze(
    model: Model,
    data: Annotated[str, Say(f"Images; labels are not needed. {DATA_HELP}")],
    request: AnalyzeRequest,
    host: ModelPart,
    machine: MachineOptions,
    out: Annotated[
        Path | None, Say("Write analysis.html and analysis.json here.", metavar="DIR")
    ] = None,
    overwrite: Overwrite = False,
) -> Answer:
    """Measure the redundancy of a model: the degradation without each layer, head and dim.

    Takes about 100 forward passes over 256 images for a model of 12 blocks; the page says how many.
    """
    from secateur.verbs.analyze import analyze_checked, check_analysis, check_place

    check_analysis(request)
    if out is not None:
        check_place(out, overwrite)
    refuse_missing_images(data)
    found = analyze_checked(open_model(model, host, machine.use()), data, request)
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
    from secateur.report.analysis_words import degradation_words
    from secateur.report.words import milliseconds, percent

    record = AnalysisRecord.model_validate(found.record)
    for sentence in found.findings:
        console.print(f"• {sentence}")
    table = plain_table("layer", "MACs", "time", f"degradation, {record.unit}", "kept", "")
    for layer in record.layers:
        table.add_row(
            layer.id,
            percent(layer.macs / record.macs),
            "–" if layer.ms is None else milliseconds(layer.ms),
            degradation_words(layer.degradation, ""),
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
        console.print(f"Rank correlation of scores with degradation: {', '.join(known)}.")
