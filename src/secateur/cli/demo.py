"""`secateur demo`: the whole path offline, on the bundled model and data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.options import MachineOptions, Overwrite, use_threads

if TYPE_CHECKING:
    from rich.console import Console


@verb
def demo(
    machine: MachineOptions,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to save; an earlier demo is replaced.")
    ] = Path("secateur-demo"),
    overwrite: Overwrite = False,
) -> Answer:
    """Prune a small bundled model to half its MACs, save it, load it again and evaluate both."""
    from secateur.cli.prune import answer
    from secateur.verbs.demo import demo as run

    use_threads(machine)
    device = machine.check()
    with progress_bar() as progress:
        found = run(out, device=device, overwrite=overwrite, progress=progress)
    pruned = answer(
        found.result,
        out,
        found.replaced,
        reloaded={
            "accuracy": found.reloaded.to_json(),
            "largest_difference": found.largest_difference,
        },
    )

    def show(console: "Console") -> None:
        from secateur.cli.tables import top1

        console.print("The bundled digits model, pruned to half its MACs:")
        pruned.show(console)
        console.print(
            f"Loaded again: top-1 {top1(found.reloaded)}, outputs within "
            f"{found.largest_difference:.1g} of the model in memory."
        )

    return Answer(data=pruned.data, show=show)
