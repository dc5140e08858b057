"""`secateur demo`: the whole path offline, on the bundled model and data."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.cli.common import Answer, verb
from secateur.cli.options import MachineOptions
from secateur.verbs.requests import DemoRequest

if TYPE_CHECKING:
    from rich.console import Console


@verb
def demo(request: DemoRequest, machine: MachineOptions) -> Answer:
    """Prune a small bundled model to half its MACs, save it, load it again and evaluate both."""
    from secateur.cli.prune import answer
    from secateur.verbs.demo import demo as run

    found = run(**vars(replace(request, device=machine.use())))
    pruned = answer(
        found.result,
        Path(request.out),
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
