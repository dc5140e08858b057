"""`secateur learn`: masks learned during training, removed, and what is left fine-tuned."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.common import Answer, is_first_process, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    Model,
    ReferenceOptions,
    open_model,
    refuse_missing_images,
)
from secateur.cli.training import Speaker, TrainingOptions, alone, command, remove_checkpoints
from secateur.masks.request import MASKS, LearnRequest
from secateur.request.parts import Overwrite
from secateur.request.say import Say, shipped
from secateur.verbs.requests import ToTrainRequest

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from secateur.masks.settings import LearnSettings
    from secateur.verbs.learned_result import Learned

FROM_SCRATCH_WARMUP = 0.4


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How masks are searched; what is given replaces what a settings file says."""

    search: Annotated[
        str | None,
        Say(
            f"How masks are searched: {shipped('masks/strategies', '.py')}.",
            MASKS,
            shown="projected",
        ),
    ] = None
    search_share: Annotated[
        float | None,
        Say("Share of the training in which masks are learned; 0 takes the criterion's.", MASKS),
    ] = None
    warmup_share: Annotated[
        float | None,
        Say("Share in which the dense model is trained first; 0, or 0.4 from scratch.", MASKS),
    ] = None


@verb
@alone
def learn(
    model: Model,
    data: Annotated[str, Say(f"Images to learn on. {DATA_HELP}")],
    out: Annotated[Path, Say("Where to save the smaller model.", metavar="DIR")],
    request: LearnRequest,
    search: SearchOptions,
    options: TrainingOptions,
    host: ToTrainRequest,
    machine: MachineOptions,
    dense: ReferenceOptions,
    overwrite: Overwrite = False,
) -> Answer:
    """Learn masks in training, remove the masked units, fine-tune the smaller model.

    The same command resumes a run that was interrupted. Several processes:
    accelerate launch -m secateur learn ...
    """
    from secateur.masks.task import check_learning
    from secateur.verbs.learn import learn_checked
    from secateur.verbs.training_result import training_folder

    settings = _settings(search, options, host.from_scratch)
    asked = check_learning(
        replace(
            request,
            settings=settings,
            folder=training_folder(out),
            device=machine.device,
            on_log=Speaker(),
            on_note=lambda text: typer.echo(text, err=True),
        )
    )
    refuse_missing_images(data, request.eval_images)
    host = host.for_images(request, settings.seed)
    opened, images = _open(model, host, machine.use(), data)
    asked = replace(asked, request=replace(asked.request, reference=dense.opened(opened)))
    return _finish(learn_checked(opened, images, asked), out, overwrite)


def _settings(
    search: SearchOptions, options: TrainingOptions, from_scratch: bool
) -> "LearnSettings":
    from secateur.masks.settings import LearnSettings
    from secateur.training.settings import read_settings

    changes = options.changes() | asdict(search)
    settings = read_settings(LearnSettings, options.config, changes)
    if from_scratch and not settings.warmup_share and search.warmup_share is None:
        settings = settings.model_copy(update={"warmup_share": FROM_SCRATCH_WARMUP})
    return settings


def _open(model: str, host: ToTrainRequest, device: str, data: str) -> "tuple[nn.Module, object]":
    """The model, and the images as named, or opened where their classes make the head."""
    if not host.from_scratch:
        return open_model(model, host, device), data
    import torch

    from secateur.verbs.train import open_to_train

    torch.manual_seed(host.seed)
    opened, images = open_to_train(model, data, **vars(host))
    return opened.to(device), images


def _finish(result: "Learned", out: Path, overwrite: bool) -> Answer:
    """Save in the first process, remove the checkpoints, and answer."""
    from secateur.cli.prune import answer
    from secateur.verbs.training_result import training_folder

    result.result.command = command()
    replaced = None
    if is_first_process():
        replaced = result.save(out, overwrite=overwrite)
        remove_checkpoints(training_folder(out))
    told: dict[str, Any] = result.record()["learning"]
    plain = answer(result.result, out, replaced, learning=told)

    def show(console: "Console") -> None:
        plain.show(console)
        console.print(f"Settings and curves are in {out / 'training.json'}.")

    return Answer(data=plain.data, show=show)
