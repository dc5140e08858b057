"""`secateur demo`: the whole path offline, on the bundled model and data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.cli.common import Answer, verb
from secateur.cli.options import MachineOptions, Overwrite
from secateur.progress import Progress
from secateur.request.say import Say

if TYPE_CHECKING:
    from rich.console import Console


@verb
def demo(
    machine: MachineOptions,
    progress: Progress,
    out: Annotated[Path, Say("Where to save; an earlier demo is replaced.", metavar="DIR")] = Path(
        "secateur-demo"
    ),
    overwrite: Overwrite = False,
) -> Answer:
    """Prune a small bundled model to half its MACs, save it, load it again and evaluate both."""
    from secateur.cli.prune import answer
    from secateur.verbs.demo import demo as run

    found = run(out, device=machine.use(), overwrite=overwrite, progress=progress)
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
