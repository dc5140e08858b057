"""`secateur inspect`: what a model is made of and what of it can be pruned."""

from typing import TYPE_CHECKING

from secateur.cli.common import Answer, verb
from secateur.cli.options import MachineOptions, Model, open_model
from secateur.request.parts import ModelPart
from secateur.verbs.requests import InspectRequest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from secateur.verbs.inspect import BranchRow, Inspection


WIDE = 76
"""Columns of a terminal from which shares are shown beside counts."""


@verb
def inspect(
    model: Model,
    request: InspectRequest,
    host: ModelPart,
    machine: MachineOptions,
) -> Answer:
    """Show the structure of a model: parameters, MACs, time and prunable groups per branch.

    Nothing is downloaded: a named model without --checkpoint is built for its sizes alone.
    """
    from secateur.measurement.timing import check_timing
    from secateur.verbs.inspect import inspect as look_at
    from secateur.verbs.load import load_shape

    check_timing(request.runtime, request.latency_batch)
    device = machine.use()
    opened = (
        load_shape(
            model,
            num_classes=host.num_classes,
            img_size=host.img_size,
            device=device if request.latency else "meta",
        )
        if host.checkpoint is None
        else open_model(model, host, device)
    )
    found = look_at(opened, **vars(request))
    return Answer(
        data={"model": model, **found.to_json()}, show=lambda console: _show(console, model, found)
    )


def _show(console: "Console", model: str, found: "Inspection") -> None:
    channels, height, width = found.input_size
    console.print(f"[bold]{model}[/]  {found.family}")
    console.print(
        f"{found.macs:,} MACs · {found.params:,} parameters · {found.blocks} blocks · width "
        f"{found.width} · {found.tokens} tokens of {channels}×{height}×{width} · "
        f"{found.num_classes} classes"
    )
    console.print(_branch_table(found, shares=console.width >= WIDE))
    _show_time(console, found)
    _show_groups(console, found)


def _branch_table(found: "Inspection", *, shares: bool) -> "Table":
    from secateur.cli.tables import plain_table
    from secateur.report.words import count, percent, significant

    def cells(macs: int, params: int, ms: float | None) -> list[str]:
        of_macs, of_params = percent(macs / found.macs), percent(params / found.params)
        both = [count(macs), of_macs, count(params), of_params]
        shown = both if shares and found.latency is None else both[::2]
        if found.latency is None:
            return shown
        own = ms or 0.0
        return [*shown, significant(own), *([percent(own / found.latency.ms)] if shares else [])]

    columns = ["MACs", "share", "params", "share"] if shares else ["MACs", "params"]
    if found.latency is not None:
        columns = ["MACs", "params", "ms", *(["of time"] if shares else [])]
    table = plain_table("branch", "sizes", *columns)
    for branch in found.branches:
        own = cells(branch.macs, branch.params, branch.ms)
        table.add_row(branch.id, _sizes(branch), *own)
    for name, cost in found.stand_ins.items():
        table.add_row(name, "a linear layer", *cells(cost["macs"], cost["params"], None))
    ends_ms = None if found.latency is None else found.latency.ends_ms
    rest = cells(found.ends["macs"], found.ends["params"], ends_ms)
    table.add_row("the rest", "embedding, norm, head", *rest)
    return table


def _show_time(console: "Console", found: "Inspection") -> None:
    from secateur.report.words import milliseconds

    time = found.latency
    if time is not None:
        several = "" if time.threads == 1 else "s"
        threads = f", {time.threads} thread{several}" if time.device == "cpu" else ""
        console.print(
            f"The whole model takes {milliseconds(time.ms)} ({time.runtime} on {time.device}, "
            f"batch {time.batch_size}{threads}). Layers are timed alone, in turns with it."
        )


def _sizes(branch: "BranchRow") -> str:
    shape = branch.shape
    if branch.kind == "attention":
        return f"{shape['heads']} heads, qk {shape['qk']}, vo {shape['vo']}"
    return f"hidden {shape['hidden']}"


def _show_groups(console: "Console", found: "Inspection") -> None:
    """Which groups can be pruned anywhere, and for each refusal where and why."""
    offered = {group: None for branch in found.branches for group in branch.groups}
    width = " So can width, the channels of the stream." if found.streams else ""
    console.print(f"Can be pruned: {', '.join([*offered, 'branch', 'block'])}.{width}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for branch in found.branches:
        for group, reason in branch.refusals.items():
            reasons.setdefault((group, reason), []).append(branch.id)
    for whole, reason in found.refusals.items():
        console.print(f"Cannot be pruned: {whole}, because {reason}.")
    for (name, reason), where in reasons.items():
        few = where[0] if len(where) == 1 else f"{where[0]} … {where[-1]}"
        console.print(f"Cannot be pruned: {name} in {few}, because {reason}.")
