"""`secateur inspect`: what a model is made of and what of it can be pruned."""

from typing import TYPE_CHECKING

from secateur.cli.common import Answer, verb
from secateur.cli.options import HostOptions, Model, open_model

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from secateur.pipeline.inspect import BranchRow, Inspection


WIDE = 76
"""Columns of a terminal from which shares are shown beside counts."""


@verb
def inspect(model: Model, host: HostOptions) -> Answer:
    """Show the anatomy of a model: parameters and MACs per branch, and what can be pruned.

    Nothing is downloaded: of a named model without --checkpoint, only the sizes are needed.
    """
    from secateur.pipeline.inspect import inspect as look_at
    from secateur.pipeline.opening import load_shape

    opened = (
        load_shape(model, num_classes=host.num_classes, img_size=host.img_size, device="meta")
        if host.checkpoint is None
        else open_model(model, host)
    )
    found = look_at(opened)
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
    _show_groups(console, found)


def _branch_table(found: "Inspection", *, shares: bool) -> "Table":
    from secateur.cli.tables import plain_table
    from secateur.report.words import count, percent

    def cells(macs: int, params: int) -> list[str]:
        of_macs, of_params = percent(macs / found.macs), percent(params / found.params)
        both = [count(macs), of_macs, count(params), of_params]
        return both if shares else both[::2]

    columns = ["MACs", "share", "params", "share"]
    table = plain_table("branch", "sizes", *(columns if shares else columns[::2]))
    for branch in found.branches:
        table.add_row(branch.id, _sizes(branch), *cells(branch.macs, branch.params))
    rest = cells(found.ends["macs"], found.ends["params"])
    table.add_row("the rest", "embedding, norm, head", *rest)
    return table


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
