"""`secateur learn`: masks learned during training, removed, and what is left fine-tuned."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.masks import MaskOptions
from secateur.cli.options import (
    DATA_HELP,
    MODEL,
    HostOptions,
    MachineOptions,
    Model,
    ReferenceOptions,
    names,
    open_model,
    refuse_missing_images,
    use_threads,
    widths,
)
from secateur.cli.training import TRAINING, LessonOptions, Speaker, TrainingOptions, one_voice

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from secateur.masks.settings import LearnSettings
    from secateur.verbs.learned_result import Learned

FROM_SCRATCH_WARMUP = 0.4


@verb
def learn(
    model: Model,
    data: Annotated[str, typer.Option(help=f"Images to learn on. {DATA_HELP}")],
    budget: Annotated[
        str,
        typer.Option(
            help="What is kept of the whole model: '30% params', '2.0 GMACs', '6.5 ms', "
            "'2x faster'."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to save the smaller model.")],
    masks: MaskOptions,
    options: TrainingOptions,
    host: HostOptions,
    machine: MachineOptions,
    lesson: LessonOptions,
    dense: ReferenceOptions,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Begin with random weights and a head for the classes of the data.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Between outputs: kl, mse, bce, cosine; else as suits the head.",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency/--no-latency",
            help="Time dense and smaller model in turns.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
) -> Answer:
    """Learn which units to remove while training, remove them, fine-tune what is left.

    A run that was stopped goes on when the same command is given again. Several processes:
    accelerate launch -m secateur learn ...
    """
    from secateur.masks.task import LearnOptions, check_learn_words
    from secateur.methods.task import parse_groups
    from secateur.storage.save import check_out
    from secateur.verbs.heal import open_reference
    from secateur.verbs.learn import learn as run
    from secateur.verbs.training_result import training_folder

    check_out(out, overwrite=options.overwrite)
    align, minimum = widths("--align", masks.align), widths("--min-width", masks.min_width)
    groups = names(masks.groups)
    parse_groups([*(groups or []), *align, *minimum])
    settings = _settings(masks, options, from_scratch)
    check_learn_words(
        LearnOptions(
            budget=budget,
            sharing=masks.sharing,
            gates=masks.gates,
            criterion=masks.criterion,
            runtime=masks.runtime,
            latency_batch=masks.latency_batch,
            settings=settings,
        )
    )
    refuse_missing_images(data, lesson.eval_data)
    use_threads(machine)
    device = machine.check()
    teacher, weights = dense.name, dense.reference_checkpoint
    opened, images = _open(model, host, device, data, from_scratch, settings.seed, lesson)
    with one_voice(out):
        with progress_bar() as progress:
            result = run(
                opened,
                images,
                budget,
                reference=None if teacher is None else open_reference(opened, teacher, weights),
                sharing=masks.sharing,
                gates=masks.gates,
                criterion=masks.criterion,
                groups=groups,
                protect=names(masks.protect) or (),
                align=align,
                minimum=minimum,
                loss=loss,
                settings=settings,
                folder=training_folder(out),
                restart=options.restart,
                limit=lesson.limit or None,
                skip_unreadable=lesson.skip_unreadable,
                eval_images=lesson.eval_data,
                device=machine.device,
                latency=latency,
                runtime=masks.runtime,
                latency_batch=masks.latency_batch,
                progress=progress,
                on_log=Speaker(),
                on_note=lambda text: typer.echo(text, err=True),
            )
        return _finish(result, out, options.overwrite)


def _settings(masks: MaskOptions, options: TrainingOptions, from_scratch: bool) -> "LearnSettings":
    from secateur.masks.settings import LearnSettings
    from secateur.training.settings import read_settings

    changes = {
        **options.changes(),
        "search": masks.search,
        "search_share": masks.search_share,
        "warmup_share": masks.warmup_share,
    }
    settings = read_settings(LearnSettings, options.config, changes)
    if from_scratch and not settings.warmup_share and masks.warmup_share is None:
        settings = settings.model_copy(update={"warmup_share": FROM_SCRATCH_WARMUP})
    return settings


def _open(
    model: str,
    host: HostOptions,
    device: str,
    data: str,
    from_scratch: bool,
    seed: int,
    lesson: LessonOptions,
) -> "tuple[nn.Module, object]":
    """The model, and the images as named, or opened where their classes make the head."""
    if not from_scratch:
        return open_model(model, host, device), data
    from dataclasses import asdict

    import torch

    from secateur.cli.options import numbers
    from secateur.verbs.train import open_to_train

    given = asdict(host)
    mean, std = (numbers(f"--{name}", given.pop(name)) for name in ("mean", "std"))
    torch.manual_seed(seed)
    opened, images = open_to_train(
        model,
        data,
        from_scratch=True,
        mean=mean,
        std=std,
        limit=lesson.limit or None,
        seed=seed,
        skip_unreadable=lesson.skip_unreadable,
        **given,
    )
    return opened.to(device), images


def _finish(result: "Learned", out: Path, overwrite: bool) -> Answer:
    """Save in the first process, remove the checkpoints, and answer."""
    from accelerate import PartialState

    from secateur.cli.prune import answer
    from secateur.masks.phases import AXES
    from secateur.training import checkpoint
    from secateur.verbs.training_result import training_folder

    result.result.command = "secateur " + shlex.join(sys.argv[1:])
    replaced = None
    if PartialState().is_main_process:
        replaced = result.save(out, overwrite=overwrite)
        for part in (*result.phases, AXES):
            checkpoint.remove(training_folder(out) / part)
    told: dict[str, Any] = result.record()["learning"]
    plain = answer(result.result, out, replaced, learning=told)

    def show(console: "Console") -> None:
        plain.show(console)
        console.print(f"Settings and curves are in {out / 'training.json'}.")

    return Answer(data=plain.data, show=show)
