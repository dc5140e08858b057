"""`secateur heal`: a pruned model learns from its dense original."""

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    ReferenceOptions,
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
def heal(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR", help="A directory saved by secateur.", show_default=False),
    ],
    data: Annotated[str, typer.Option(help=f"Images to learn on. {DATA_HELP}")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to save the healed model.")],
    options: TrainingOptions,
    machine: MachineOptions,
    lesson: LessonOptions,
    dense: ReferenceOptions,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Learn the images' labels too. Off unless the settings say so.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Between outputs: kl, mse, bce, cosine; else as suits the head.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="By what weights are judged while training: held_out, a share of --data, or "
            "eval_data.",
            rich_help_panel=TRAINING,
        ),
    ] = "held_out",
) -> Answer:
    """Let a pruned model learn from the dense one, and save it again.

    A run that was stopped goes on when the same command is given again. Several processes:
    accelerate launch -m secateur heal ...
    """
    from secateur.storage.save import check_out
    from secateur.training.settings import read_settings
    from secateur.training.verbs import HealSettings
    from secateur.verbs.heal import heal as run
    from secateur.verbs.heal import open_reference, with_labels
    from secateur.verbs.judgement import check_judge
    from secateur.verbs.load import load
    from secateur.verbs.training_result import training_folder

    check_out(out, overwrite=options.overwrite)
    settings = with_labels(read_settings(HealSettings, options.config, options.changes()), labels)
    check_judge(judge, lesson.eval_data)
    refuse_missing_images(data, lesson.eval_data)
    use_threads(machine)
    device = machine.check()
    opened = load(model, device=device)
    name, checkpoint = dense.name, dense.reference_checkpoint
    reference = None if name is None else open_reference(opened, name, checkpoint)
    with one_voice(out):
        with progress_bar() as progress:
            result = run(
                opened,
                data,
                reference=reference,
                loss=loss,
                settings=settings,
                folder=training_folder(out),
                restart=options.restart,
                limit=lesson.limit or None,
                skip_unreadable=lesson.skip_unreadable,
                eval_images=lesson.eval_data,
                judge=judge,
                device=machine.device,
                progress=progress,
                on_log=Speaker(),
            )
        return finish(result, out, options.overwrite)
