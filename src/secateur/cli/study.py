"""`secateur study`: a grid of pruning runs, resumable, with one page of results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import DONE, FAILED, Answer, verb
from secateur.request.say import Say
from secateur.verbs.requests import StudyRequest

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.study.runner import StudyRun


@verb
def study(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY.yaml",
            help="Models, structures, scores, budgets, repairs and seeds to combine.",
            show_default=False,
        ),
    ],
    request: StudyRequest,
    out: Annotated[
        Path | None,
        Say("Results and page. Default: a directory named like the file.", metavar="DIR"),
    ] = None,
) -> Answer:
    """Run a grid of prunings and compare them. Finished cells are kept after an interruption."""
    from secateur.study.runner import run_study

    directory = Path(file.stem) if out is None else out
    try:
        run = run_study(file, directory, **vars(request))
    except KeyboardInterrupt as error:
        error.add_note(
            f"finished cells are kept in {directory}; give the same command again to go on"
        )
        raise
    return Answer(
        data=run.to_json(),
        show=lambda console: _show(console, run),
        code=FAILED if run.failures else DONE,
    )


def _show(console: "Console", run: "StudyRun") -> None:
    told = ", ".join(f"{number} {status}" for status, number in sorted(run.cells.items()))
    console.print(f"{run.title}: {told} ({run.ran} run now).")
    for cell, reason in list(run.failures.items())[:10]:
        console.print(f"failed: {cell}: {reason}", markup=False)
    if len(run.failures) > 10:
        console.print(f"and {len(run.failures) - 10} more; see the page.")
    console.print(f"Open {run.page}; the numbers are in {run.store}.")
