"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from secateur.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

EVERY = 30.0
"""Seconds between lines of a run that is not watched on a terminal."""

SURE = 2.0
"""Seconds after which the speed of a stage says how long it will take."""


class Turn:
    """When a line was last written, whoever wrote it."""

    every = EVERY

    def __init__(self) -> None:
        self._last = time.monotonic()

    def comes(self, early: float = 0.0) -> bool:
        """Whether the last line is long ago, but for some seconds; then one is written now."""
        if time.monotonic() - self._last < self.every - early:
            return False
        self.taken()
        return True

    def taken(self) -> None:
        """A line is written now."""
        self._last = time.monotonic()


turn = Turn()


class Stage:
    """The time that a stage still takes, at its mean speed so far.

    WHY the mean: that of the last moments jumps with every batch.
    """

    def __init__(self, done: int) -> None:
        self._begin, self._before = time.monotonic(), done

    def left(self, done: int, total: int) -> str:
        """In words; empty as long as it is not known."""
        seconds, new = time.monotonic() - self._begin, done - self._before
        if seconds < SURE or new <= 0 or done >= total:
            return ""
        return f"{clock((total - done) * seconds / new)} left"


def clock(seconds: float) -> str:
    """A duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def progress_bar(*, silent: bool) -> Iterator[Progress]:
    """Progress with the time left of each stage; nothing at all if `silent`."""
    from rich.console import Console

    console = Console(stderr=True)
    stages: dict[str, Stage] = {}
    turn.taken()
    bars = _bars(console) if console.is_terminal and not silent else None
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        left = stages.setdefault(stage, Stage(done)).left(done, total)
        if bars is not None:
            # WHY here: until something is measured, others may show bars of their own.
            bars.start()
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, left="")
            bars.update(tasks[stage], completed=done, total=total, left=left)
        elif not silent and turn.comes():
            share = f" ({100 * done // total} %)" if total else ""
            told = f"{stage}: {done:,} of {total:,}{share}"
            typer.echo(", ".join(part for part in (told, left) if part), err=True)
        if done >= total:
            # A stage of this name may come again.
            stages.pop(stage)

    try:
        yield report
    finally:
        if bars is not None and tasks:
            bars.stop()


def _bars(console: Any) -> "Bars":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
        expand=True,
    )
