"""`secateur bench`: latency of models side by side, in the runtimes they are deployed in."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, verb
from secateur.cli.options import MachineOptions
from secateur.errors import UserError
from secateur.measurement.request import BenchRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from torch import nn

    from secateur.measurement.latency import Row


WIDE = 76
"""Columns of a terminal from which the spread and the throughput are shown."""


@verb
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models as for inspect. A single directory saved by secateur is measured beside "
            "its dense original.",
            show_default=False,
        ),
    ],
    request: BenchRequest,
    machine: MachineOptions,
) -> Answer:
    """Time models in turns: median and spread of many passes over random images.

    Time does not depend on the weights, so nothing is downloaded.
    """
    from secateur.measurement.latency import bench as measure
    from secateur.measurement.runtimes import require

    device = machine.check()
    for name in request.runtimes:
        require(name, device)
    opened = _open(models)
    asked = replace(request, threads=machine.threads, device=device)
    rows = measure(opened, _input_size(opened), **vars(asked))
    return Answer(
        data={"rows": [row.to_json() for row in rows]}, show=lambda console: _show(console, rows)
    )


def _open(sources: list[str]) -> dict[str, "nn.Module"]:
    """The models by name, the dense original first where only one saved model is given."""
    from secateur.storage.base import Base, build
    from secateur.storage.spec import Spec
    from secateur.verbs.load import load_shape

    if repeated := {name for name in sources if sources.count(name) > 1}:
        raise UserError(f"{min(repeated)} is named twice; name each model once.")
    opened = {name: load_shape(name) for name in sources}
    only = next(iter(opened.values()))
    base = getattr(only, "secateur_base", None)
    saved = isinstance(getattr(only, "secateur_spec", None), Spec)
    if len(opened) == 1 and saved and isinstance(base, Base):
        return {"dense": build(base, "cpu"), **opened}
    return opened


def _input_size(models: dict[str, "nn.Module"]) -> tuple[int, int, int]:
    from secateur.models.family import read

    sizes = {name: read(model).input_size for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {'×'.join(map(str, size))}" for name, size in sizes.items())
        raise UserError(f"the models take images of different sizes ({told}); measure them apart.")
    return next(iter(sizes.values()))


def _show(console: "Console", rows: "Sequence[Row]") -> None:
    from secateur.cli.tables import plain_table
    from secateur.report.words import milliseconds, percent, plural

    several = len({(row.latency.runtime, row.latency.batch_size) for row in rows}) < len(rows)
    wide = console.width >= WIDE
    table = plain_table(
        "model", "runtime, batch", "median", *(["IQR", "images/s"] if wide else []), "ratio"
    )
    for row in rows:
        own = row.latency
        spread = [milliseconds(own.iqr_ms), f"{own.throughput:,.0f}"]
        table.add_row(
            Path(row.model).name if "/" in row.model else row.model,
            f"{own.runtime}, {own.batch_size}",
            milliseconds(own.median_ms),
            *(spread if wide else []),
            percent(row.ratio) if several else "–",
        )
    console.print(table)
    first = rows[0].latency
    console.print(
        f"{first.device}, {plural(first.threads, 'thread')}; {first.runs} passes or more of each "
        "model, in turns. Ratio: the time as a share of the first model's."
    )
