"""`secateur heal`: a pruned model learns from its dense original."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.options import DATA_HELP, IMAGES, MachineOptions, use_threads
from secateur.cli.training import TRAINING, Speaker, TrainingOptions, finish, one_voice

if TYPE_CHECKING:
    from torch import nn

REFERENCE = "Reference"


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
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The dense model to learn from. For a directory saved from a bundled model, its "
            "dense original unless given.",
            rich_help_panel=REFERENCE,
            show_default=False,
        ),
    ] = None,
    reference_checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of the reference.",
            rich_help_panel=REFERENCE,
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Learn the images' labels too. Off unless the settings say so.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images on which accuracy is measured before and after.",
            rich_help_panel=IMAGES,
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Images to learn on; 0 for all.", rich_help_panel=IMAGES)
    ] = 0,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Leave out images that cannot be decoded, and name them.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
) -> Answer:
    """Let a pruned model learn from the dense one, and save it again.

    A run that was stopped goes on when the same command is given again. Several processes:
    accelerate launch -m secateur heal ...
    """
    from secateur.healing.settings import read_settings
    from secateur.healing.verbs import HealSettings
    from secateur.pipeline.heal import heal as run
    from secateur.pipeline.heal import with_labels
    from secateur.pipeline.opening import load, refuse_missing
    from secateur.pipeline.trained import training_folder
    from secateur.storage.save import check_out

    check_out(out)
    settings = with_labels(read_settings(HealSettings, options.config, options.changes()), labels)
    for source in (data, eval_data):
        if source is not None:
            refuse_missing(source)
    use_threads(machine)
    opened = load(model)
    with one_voice():
        with progress_bar() as progress:
            result = run(
                opened,
                data,
                reference=_reference(opened, reference, reference_checkpoint),
                settings=settings,
                folder=training_folder(out),
                restart=options.restart,
                limit=limit or None,
                skip_unreadable=skip_unreadable,
                eval_images=eval_data,
                progress=progress,
                on_log=Speaker(),
            )
        return finish(result, out)


def _reference(model: "nn.Module", name: str | None, checkpoint: Path | None) -> "nn.Module | None":
    from secateur.errors import UserError
    from secateur.pipeline.heal import open_reference

    if name is None:
        if checkpoint is not None:
            raise UserError("--reference-checkpoint needs the name of its model: --reference.")
        return None
    return open_reference(model, name, checkpoint)
