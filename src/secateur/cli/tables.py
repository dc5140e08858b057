"""Tables for people, narrow enough for any terminal."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from secateur.measurement.accuracy import Accuracy
from secateur.report.advice import advise
from secateur.report.record import RunRecord
from secateur.report.words import count, duration, milliseconds, percent

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.verbs.result import Result

UNKNOWN = "–"


def plain_table(first: str, *others: str) -> Table:
    """A table whose first column is text, which may wrap, and whose other columns are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, min_width=max(10, min(14, len(first))), overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def top1(accuracy: Accuracy | None) -> str:
    """Top-1 accuracy with its standard error."""
    if accuracy is None or accuracy.top1 is None or accuracy.stderr is None:
        return UNKNOWN
    return f"{accuracy.top1:.1f} ± {accuracy.stderr:.1f} %"


def share(value: float | None) -> str:
    """A number that is in percent already."""
    return UNKNOWN if value is None else f"{value:.1f} %"


def show_replaced(console: "Console", what: str | None) -> None:
    """What a result took the place of, if anything."""
    if what is not None:
        console.print(f"Replaced {what}.", markup=False)


def show_result(console: "Console", result: "Result") -> None:
    """Dense beside pruned: costs, accuracy, latency; then the budget and the time it took."""
    before, after = result.cost_dense, result.cost
    table = plain_table("", "dense", "pruned", "of dense")
    for name, dense, pruned in (
        ("MACs", before.macs, after.macs),
        ("parameters", before.params, after.params),
    ):
        table.add_row(name, count(dense), count(pruned), percent(pruned / dense))
    if (wide := result.before.width) != (narrow := result.after.width):
        table.add_row("stream width", f"{wide}", f"{narrow}", percent(narrow / wide))
    _add_accuracy(table, result)
    _add_latency(table, result)
    console.print(table)
    use = result.budget_use
    if use is not None:
        said = milliseconds if use.unit == "ms" else count
        console.print(
            f"Budget {result.task.request.goal}: target {said(use.limit)}, reached "
            f"{said(use.reached)}, {_use(use.shortfall_percent)}."
        )
    else:
        console.print(f"Budget {result.task.request.goal}: met layer by layer.")
    stages = ", ".join(f"{name} {duration(value)}" for name, value in result.seconds.items())
    console.print(f"{result.data.images} calibration images; {stages}.")
    for note in result.notes:
        console.print(f"Note: {note}")
    advice = advise(RunRecord.model_validate(result.record()))
    console.print(advice.sentence, markup=False)
    if advice.command:
        console.print(advice.command, markup=False, soft_wrap=True)


def _use(shortfall_percent: float) -> str:
    if shortfall_percent >= 0:
        return f"{shortfall_percent:.1f} % of it unused"
    return f"missed by {-shortfall_percent:.1f} %, within the tolerance for measured times"


def _add_accuracy(table: Table, result: "Result") -> None:
    dense, pruned = result.accuracy_dense, result.accuracy
    if dense is None or pruned is None:
        return
    if dense.top1 is not None and pruned.top1 is not None:
        loss = f"{pruned.top1 - dense.top1:+.1f} points"
        table.add_row("top-1", top1(dense), top1(pruned), loss)
    if pruned.squared_error is not None:
        table.add_row("squared error", "", f"{100 * pruned.squared_error:.3g} % of variance", "")
    table.add_row("agreement", "", share(pruned.agreement), "")


def _add_latency(table: Table, result: "Result") -> None:
    rows = result.latency
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        table.add_row(
            f"latency, {first['runtime']}, batch {first['batch_size']}",
            milliseconds(first["median_ms"]),
            milliseconds(second["median_ms"]),
            percent(second["ratio"]),
        )
