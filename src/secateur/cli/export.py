"""`secateur export`: a file for another runtime, given out only if it computes the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, verb
from secateur.cli.options import HostOptions, Model, open_model

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.export.parity import Parity


@verb
def export(
    model: Model,
    to: Annotated[str, typer.Option(help="onnx, openvino or torch.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")],
    host: HostOptions,
) -> Answer:
    """Write a model for another runtime, and compare its outputs with the model's."""
    from secateur.export import export as write
    from secateur.export import exporters

    exporters.get(to)
    parity = write(open_model(model, host), to, out)
    return Answer(data={"to": to, **parity.to_json()}, show=lambda console: _show(console, parity))


def _show(console: "Console", parity: "Parity") -> None:
    batch = "any number of images" if parity.any_batch else "one image at a time"
    console.print(
        f"Wrote {parity.path}, for {batch}; its outputs differ from the model's by at most "
        f"{parity.max_abs:.2g} ({parity.max_rel:.2g} of the largest)."
    )
