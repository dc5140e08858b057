"""`secateur train`: fine-tune a dense model on labelled images."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from secateur.cli.common import Answer, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    Model,
    refuse_missing_images,
)
from secateur.cli.training import Speaker, TrainingOptions, alone, finish
from secateur.request.parts import Overwrite
from secateur.request.say import Say
from secateur.verbs.requests import ToTrainRequest, TrainRequest


@verb
@alone
def train(
    model: Model,
    data: Annotated[str, Say(f"Labelled images to learn. {DATA_HELP}")],
    out: Annotated[Path, Say("Where to save the trained model.", metavar="DIR")],
    request: TrainRequest,
    options: TrainingOptions,
    host: ToTrainRequest,
    machine: MachineOptions,
    overwrite: Overwrite = False,
) -> Answer:
    """Fine-tune a model on labelled images, and save it in secateur's form.

    Of a model of timm, the head begins afresh for other classes and position tables are resampled
    to another --img-size. The same command resumes a run that was interrupted.
    """
    from secateur.training.heal_and_train import FineTuneSettings
    from secateur.training.settings import read_settings
    from secateur.verbs.train import open_to_train
    from secateur.verbs.train import train as run
    from secateur.verbs.training_result import training_folder

    settings = read_settings(FineTuneSettings, options.config, options.changes())
    refuse_missing_images(data, request.eval_images)
    machine.use()
    asked = replace(
        request,
        settings=settings,
        folder=training_folder(out),
        device=machine.device,
        on_log=Speaker(),
    )
    own = host.for_images(request, settings.seed)
    opened, images = open_to_train(model, data, **vars(own))
    return finish(run(opened, images, **vars(asked)), out, overwrite)
