"""`secateur export`: a file for another runtime, given out only if it computes the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.cli.common import Answer, verb
from secateur.cli.options import Model, open_model
from secateur.request.parts import ModelPart, Overwrite
from secateur.request.say import Say

if TYPE_CHECKING:
    from rich.console import Console

    from secateur.export.parity import Parity


@verb
def export(
    model: Model,
    to: Annotated[str, Say("onnx, openvino, torch, or plain (a directory of its own library).")],
    out: Annotated[Path, Say("Where to write it.", metavar="PATH")],
    host: ModelPart,
    overwrite: Overwrite = False,
) -> Answer:
    """Write a model for another runtime, and compare the outputs of both."""
    from secateur.export import export as write
    from secateur.export import exporters
    from secateur.export.parity import check_file

    exporters.get(to)
    replaced = check_file(out, overwrite=overwrite)
    parity = write(open_model(model, host), to, out, overwrite=overwrite)
    return Answer(
        data={"to": to, "replaced": replaced, **parity.to_json()},
        show=lambda console: _show(console, parity, replaced),
    )


def _show(console: "Console", parity: "Parity", replaced: str | None) -> None:
    from secateur.cli.tables import show_replaced

    show_replaced(console, replaced)
    batch = "any number of images" if parity.any_batch else "one image at a time"
    console.print(
        f"Wrote {parity.path}, for {batch}; its outputs differ from the model's by at most "
        f"{parity.max_abs:.2g} ({parity.max_rel:.2g} of the largest)."
    )
