"""`secateur train`: fine-tune a dense model on labelled images."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.options import (
    DATA_HELP,
    MODEL,
    HostOptions,
    MachineOptions,
    Model,
    numbers,
    refuse_missing_images,
    use_threads,
)
from secateur.cli.training import (
    TRAINING,
    LessonOptions,
    Speaker,
    TrainingOptions,
    finish,
    one_voice,
)


@verb
def train(
    model: Model,
    data: Annotated[str, typer.Option(help=f"Labelled images to learn. {DATA_HELP}")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to save the trained model.")],
    options: TrainingOptions,
    host: HostOptions,
    machine: MachineOptions,
    lesson: LessonOptions,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Begin with random weights.", rich_help_panel=MODEL),
    ] = False,
    judge: Annotated[
        str,
        typer.Option(
            help="By what weights are judged while training: held_out, a share of --data, or "
            "eval_data.",
            rich_help_panel=TRAINING,
        ),
    ] = "held_out",
) -> Answer:
    """Fine-tune a model on labelled images, and save it in secateur's form.

    Of a model of timm, the head begins afresh for other classes and position tables are resampled
    to another --img-size. A run that was stopped goes on when the same command is given again.
    """
    from secateur.storage.save import check_out
    from secateur.training.settings import read_settings
    from secateur.training.verbs import FineTuneSettings
    from secateur.verbs.judgement import check_judge
    from secateur.verbs.train import open_to_train
    from secateur.verbs.train import train as run
    from secateur.verbs.training_result import training_folder

    check_out(out, overwrite=options.overwrite)
    settings = read_settings(FineTuneSettings, options.config, options.changes())
    check_judge(judge, lesson.eval_data)
    refuse_missing_images(data, lesson.eval_data)
    use_threads(machine)
    machine.check()
    given = asdict(host)
    mean, std = (numbers(f"--{name}", given.pop(name)) for name in ("mean", "std"))
    with one_voice(out):
        opened, images = open_to_train(
            model,
            data,
            from_scratch=from_scratch,
            limit=lesson.limit or None,
            seed=settings.seed,
            skip_unreadable=lesson.skip_unreadable,
            mean=mean,
            std=std,
            **given,
        )
        with progress_bar() as progress:
            result = run(
                opened,
                images,
                settings=settings,
                folder=training_folder(out),
                restart=options.restart,
                eval_images=lesson.eval_data,
                judge=judge,
                device=machine.device,
                progress=progress,
                on_log=Speaker(),
            )
        return finish(result, out, options.overwrite)
