"""What `heal`, `train` and `learn` share on the command line: options, progress, the answer."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.common import DONE, Answer, is_first_process
from secateur.cli.progress import clock, turn
from secateur.errors import UserError
from secateur.request.say import TRAINING, Say
from secateur.textfiles import parse_json, read_text

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.verbs.training_result import Trained

LARGEST_TOLD = 64 * 2**20
"""In bytes, of a training.json; it holds the curves of the run."""

EARLY = 5.0
"""Seconds by which a row of the log comes before a line of mere progress would."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how to train; what is given replaces what a settings file says."""

    config: Annotated[
        Path | None, Say("Settings of the run in YAML.", TRAINING, metavar="FILE")
    ] = None
    steps: Annotated[int | None, Say("Steps to train.", TRAINING)] = None
    epochs: Annotated[
        float | None, Say("Passes over the images; 10 without steps or time.", TRAINING)
    ] = None
    time: Annotated[
        str | None, Say("Time to train: '30s', '5min', '1.5h'.", TRAINING, metavar="TIME")
    ] = None
    batch_size: Annotated[int | None, Say("Images per step, over all processes.", TRAINING)] = None
    learning_rate: Annotated[float | None, Say("At its peak.", TRAINING)] = None
    seed: Annotated[int | None, Say("Of every random choice; 0 unless given.", TRAINING)] = None
    workers: Annotated[int | None, Say("Processes that decode images.", TRAINING)] = None
    precision: Annotated[str | None, Say("no or bf16.", TRAINING)] = None

    def changes(self) -> dict[str, Any]:
        """As changes of settings."""
        given = asdict(self)
        rate = given.pop("learning_rate")
        del given["config"]
        return {**given, "optimizer.learning_rate": rate}


def speak(row: Mapping[str, float]) -> None:
    """A row of the log as one line on stderr."""
    words = [f"step {row['step']:.0f}"]
    for key, value in row.items():
        if key == "images_per_second":
            words.append(f"{value:.0f} images/s")
        elif key == "seconds_left":
            words.append(f"{clock(value)} left")
        elif key not in ("step", "share"):
            words.append(f"{key.replace('_', ' ')} {value:.4g}")
    typer.echo(", ".join(words), err=True)


class Speaker:
    """Says a row now and then where no progress bar is seen, and every look at held-out images."""

    def __init__(self) -> None:
        self._first = True

    def __call__(self, row: Mapping[str, float]) -> None:
        """Called for each row of the log."""
        if sys.stderr.isatty():
            return
        judged = any(key.startswith("held_out") for key in row)
        if judged or self._first:
            turn.taken()
        elif not turn.comes(EARLY):
            return
        self._first = self._first and judged
        speak(row)


def alone(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Make a command the only one that trains for its `out`, which must be free or to overwrite.

    Where a run of the same command was killed after it had saved its model, before its checkpoints
    were removed, that is done and is the answer. UserError where `out` cannot be written.
    """

    @wraps(function)
    def held(*, out: Path, overwrite: bool, **given: Any) -> Answer:
        from secateur.locks import sole
        from secateur.storage.directories.existing import mend_model, require_place
        from secateur.storage.directories.places import COMMAND, names_of_places
        from secateur.storage.save import check_out
        from secateur.verbs.training_result import training_folder

        require_place(out)
        folder = training_folder(out)
        with sole(folder) if is_first_process() else nullcontext(), _one_voice(out):
            mend_model(out)
            told = _saved_before(out, folder)
            # WHY: what is saved names folders in the place of paths.
            asked = names_of_places({COMMAND: command()}, {})
            if told is not None and told.get(COMMAND) == asked[COMMAND]:
                return _again(out, folder, told)
            check_out(out, overwrite=overwrite)
            return function(out=out, overwrite=overwrite, **given)

    return held


def command() -> str:
    """What was typed."""
    return "secateur " + shlex.join(sys.argv[1:])


def remove_checkpoints(folder: Path) -> None:
    """Remove those of a run whose model is saved; axes first, by which no run is known."""
    from secateur.masks.phases import AXES
    from secateur.masks.settings import PHASES
    from secateur.training import checkpoint

    if is_first_process():
        for part in (AXES, *PHASES, ""):
            checkpoint.remove(folder / part)


def _saved_before(out: Path, folder: Path) -> dict[str, Any] | None:
    """What training.json in `out` tells, if a checkpoint in `folder` is of that very run."""
    from secateur.training import checkpoint

    path = out / "training.json"
    if not path.is_file() or not any(folder.rglob(checkpoint.FILE)):
        return None
    with suppress(UserError, AttributeError, LookupError, TypeError):
        told: dict[str, Any] = parse_json(read_text(path, str(path), LARGEST_TOLD), str(path))
        reports = {"": told["training"]} if "training" in told else told["learning"]["phases"]
        for part, report in reports.items():
            state = checkpoint.read(folder / part)
            curves = ("history", "scores")
            # WHY the curves: the times in them are those of one run only.
            if (
                state is not None
                and state["finished"]
                and any(report[key] for key in curves)
                and all(report[key] == state[key] for key in curves)
            ):
                return told
    return None


def _again(out: Path, folder: Path, told: dict[str, Any]) -> Answer:
    from secateur.training.machine import processes

    # WHY: no process may look for the checkpoints once another has removed them.
    processes().wait_for_everyone()
    remove_checkpoints(folder)

    def show(console: "Console") -> None:
        console.print(
            f"{out} holds the result of this command already: the run before was stopped when it "
            "had saved it. Its checkpoint is removed now.",
            markup=False,
        )

    return Answer(data={"out": str(out), "replaced": None, **told}, show=show)


@contextmanager
def _one_voice(out: Path) -> Iterator[None]:
    """Of several processes, let only the first answer; end their group when all is done.

    An interrupted run says what of it is kept.
    """
    import torch

    from secateur.training.machine import processes

    try:
        yield
        state = processes()
        state.wait_for_everyone()
        if not state.is_main_process:
            raise typer.Exit(DONE)
    except KeyboardInterrupt as error:
        error.add_note(_kept(out))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _kept(out: Path) -> str:
    """What an interrupted run left, and how to go on."""
    from secateur.training.checkpoint import FILE
    from secateur.verbs.training_result import training_folder

    folder = training_folder(out)
    # A file in a hidden directory is the half-written one of a run that was killed.
    if any(not path.parent.name.startswith(".") for path in folder.rglob(FILE)):
        again = "without --restart" if "--restart" in sys.argv else "to go on from there"
        return f"the last checkpoint is kept in {folder}; give the same command again, {again}"
    return "there is no checkpoint yet; give the same command again to begin anew"


def finish(result: "Trained", out: Path, overwrite: bool) -> Answer:
    """Save in the first process, remove the checkpoint, and answer."""
    from secateur.verbs.training_result import training_folder

    result.command = command()
    replaced = None
    if is_first_process():
        replaced = result.save(out, overwrite=overwrite)
        remove_checkpoints(training_folder(out))
    data = {"out": str(out), "replaced": replaced, **result.record()}
    return Answer(data=data, show=lambda console: _show(console, result, out, replaced))


def _show(console: "Console", result: "Trained", out: Path, replaced: str | None) -> None:
    from secateur.cli.tables import plain_table, show_replaced, top1
    from secateur.training.judgement import ORIGINS
    from secateur.verbs.training_result import training_folder

    report, record = result.report, result.record()
    dense, kept = record["params"]["dense"], record["params"]["pruned"]
    table = plain_table(result.verb, "")
    table.add_row("trained", f"{report.budget}: {report.steps} steps, {clock(report.seconds)}")
    several = "process" if report.processes == 1 else "processes"
    table.add_row("images", f"{report.images}, {report.processes} {several}")
    table.add_row("parameters", f"{kept:,} of {dense:,}")
    if (judged := result.judged) is not None:
        name = judged.measure.replace("_", " ")
        table.add_row(f"held-out {name}", f"{judged.before:.4g} → {judged.saved:.4g}, as saved")
        table.add_row("held-out images", ORIGINS[judged.origin])
        average = ", running average" if report.averaged else ""
        table.add_row("weights of", f"step {report.best_step}{average}")
    for key, word in (("dense", "reference"), ("before", "before"), ("pruned", "now")):
        if key in result.accuracy:
            table.add_row(f"top-1, {word}", top1(result.accuracy[key]))
    console.print(table)
    for note in result.notes:
        console.print(note)
    show_replaced(console, replaced)
    console.print(f"Saved to {out}; the log is in {training_folder(out) / 'secateur_logs'}.")
