"""`secateur heal`: a pruned model learns from its dense original."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.common import Answer, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    ReferenceOptions,
    refuse_missing_images,
)
from secateur.cli.training import Speaker, TrainingOptions, alone, finish
from secateur.request.parts import Overwrite
from secateur.request.say import Say
from secateur.verbs.requests import HealRequest


@verb
@alone
def heal(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR", help="A directory saved by secateur.", show_default=False),
    ],
    data: Annotated[str, Say(f"Images to learn on. {DATA_HELP}")],
    out: Annotated[Path, Say("Where to save the healed model.", metavar="DIR")],
    request: HealRequest,
    options: TrainingOptions,
    machine: MachineOptions,
    dense: ReferenceOptions,
    overwrite: Overwrite = False,
) -> Answer:
    """Train a pruned model towards the outputs of the dense one, and save it.

    The same command resumes a run that was interrupted. Several processes:
    accelerate launch -m secateur heal ...
    """
    from secateur.training.heal_and_train import HealSettings
    from secateur.training.settings import read_settings
    from secateur.verbs.heal import heal as run
    from secateur.verbs.load import load
    from secateur.verbs.training_result import training_folder

    settings = read_settings(HealSettings, options.config, options.changes())
    refuse_missing_images(data, request.eval_images)
    opened = load(model, device=machine.use())
    asked = replace(
        request,
        reference=dense.opened(opened),
        settings=settings,
        folder=training_folder(out),
        device=machine.device,
        on_log=Speaker(),
    )
    return finish(run(opened, data, **vars(asked)), out, overwrite)
