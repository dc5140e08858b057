"""`secateur prune`: observe, weigh, plan, cut, measure and save."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from secateur.cli.common import Answer, is_first_process, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    Model,
    open_model,
    refuse_missing_images,
)
from secateur.methods.request import PruneRequest
from secateur.request.parts import ModelPart, Overwrite
from secateur.request.say import Say

if TYPE_CHECKING:
    from secateur.verbs.result import Result


@verb
def prune(
    model: Model,
    data: Annotated[str, Say(f"Calibration images. {DATA_HELP}")],
    out: Annotated[Path, Say("Where to save the smaller model.", metavar="DIR")],
    request: PruneRequest,
    host: ModelPart,
    machine: MachineOptions,
    overwrite: Overwrite = False,
) -> Answer:
    """Make a model smaller, within a budget, and save it with a report.

    DIR holds spec.json, model.safetensors, README.md and report.html.
    """
    from secateur.methods.checked import check
    from secateur.storage.save import check_out
    from secateur.verbs.prune import prune_checked

    check_out(out, overwrite=overwrite)
    asked = check(request)
    refuse_missing_images(data, request.eval_images)
    result = prune_checked(open_model(model, host, machine.use()), data, asked)
    result.command = "secateur " + shlex.join(sys.argv[1:])
    replaced = result.save(out, overwrite=overwrite) if is_first_process() else None
    return answer(result, out, replaced)


def answer(result: "Result", out: Path, replaced: str | None, **more: object) -> Answer:
    """A saved result and what it replaced, for machines and for people."""
    from rich.console import Console

    from secateur.cli.tables import show_replaced, show_result

    record = result.record()
    data = {
        "out": str(out),
        "replaced": replaced,
        "preset": record["preset"],
        "budget": record["budget"],
        "target": record["target"],
        "macs": record["macs"],
        "params": record["params"],
        "seconds": sum(result.seconds.values()),
        "stages": record["seconds"],
        "accuracy": record["accuracy"],
        "latency": record["latency"],
        "latency_rounds": record["latency_rounds"],
        "polish": record["polish"],
        "data": record["data"],
        "notes": record["notes"],
        **more,
    }

    def show(console: Console) -> None:
        show_result(console, result)
        show_replaced(console, replaced)
        console.print(f"Saved to {out}; open {out / 'report.html'}.")

    return Answer(data=data, show=show)
