"""The one training loop, on accelerate: one process or many, plain or bf16, in parts or at once.

    fit_(model, images, objective, settings, folder=..., hooks=..., judge=...)

trains `model` in place until the budget of the settings is used up. Every random choice follows
from seed, step and process, so a run that goes on from its checkpoint takes the same way.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import UserError
from secateur.progress import Progress
from secateur.training import checkpoint
from secateur.training.distillation.attention import fast_attention
from secateur.training.identity import identity_of, refuse_other_run
from secateur.training.images.sampler import Items, Prepare, items_of, loader_of, preparer, seed_for
from secateur.training.judging import Judge, Scores, judged
from secateur.training.lesson import Classroom, Hook, Moment, Objective, total
from secateur.training.machine import Machine, emulates_bf16, machine_for, training_device
from secateur.training.run import OnLog, Run
from secateur.training.settings import TrainSettings
from secateur.training.signals import Pending, deferred_signals
from secateur.training.updates.muon import muon_in_fp32
from secateur.training.updates.stochastic_depth import stochastic_depth


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What a training run did.

    `history` has a row every `log_every` steps: step, share of the budget, the loss and its terms,
    learning rate, images per second. `scores` are those of the held-out images, the first row
    before training, and `best_step` the step whose weights came out, `averaged` whether those are
    the running average. `resumed_at` is the step at which the run went on, None if in one go.
    """

    budget: str
    steps: int
    seconds: float
    images: int
    processes: int
    best_step: int
    averaged: bool
    scores: tuple[Scores, ...]
    history: tuple[Mapping[str, float], ...]
    resumed_at: int | None
    settings: TrainSettings

    @property
    def saved(self) -> Scores | None:
        """The score of the weights that came out; None where they were not judged."""
        own = (s for s in reversed(self.scores) if s.step == self.best_step)
        return next((score for score in own if score.averaged == self.averaged), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        kept = {key: getattr(self, key) for key in self.__slots__}
        return kept | {
            "scores": [asdict(score) for score in self.scores],
            "history": [dict(row) for row in self.history],
            "settings": self.settings.model_dump(mode="json"),
        }


def fit_(
    model: nn.Module,
    images: object,
    objective: Objective,
    settings: TrainSettings,
    *,
    classes: int = 0,
    labelled: bool = False,
    folder: Path | None = None,
    restart: bool = False,
    hooks: Sequence[Hook] = (),
    judge: Judge | None = None,
    about: Mapping[str, object] | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    on_log: OnLog | None = None,
) -> FitReport:
    """Train `model` on `images` (see `sampler.items_of`); it ends in eval mode where it was.

    Parameters that require no gradient stay as they are. Lessons carry labels if `labelled`, for
    a head of `classes`. With a `folder` there are checkpoints and logs in it; a run found there
    goes on, one that was finished gives its weights at once, and one whose settings, images,
    starting weights or `about` differ is refused, unless `restart` begins anew. A `judge` looks at
    the weights now and then; which of them come out is `keep` in the settings, without a judge
    the last ones. For `device` see `secateur.training.machine.training_device`. If training fails
    or is interrupted the model has its old weights; with a folder, an interrupt waits for the end
    of the step and leaves a checkpoint.

    Raises UserError, besides, for a batch that processes cannot share, weights in half precision,
    and a loss or gradient that is not finite: it names the step, and the last checkpoint stays.
    """
    items = items_of(images, settings.augment)
    _check(model, items, settings)
    where = training_device(next(model.parameters()).device, device)
    machine = machine_for(settings, folder, where)
    _check_parts(settings, machine.processes)
    known = identity_of(model, images, len(items), settings, about or {})
    state = None if folder is None or restart else checkpoint.read(folder)
    if state is not None and folder is not None:
        refuse_other_run(state["identity"], known, folder)
    with _training(model, machine, settings):
        run = Run(
            model=model,
            room=Classroom(model, objective, hooks),
            hooks=list(hooks),
            settings=settings,
            length=settings.length(len(items)),
            machine=machine,
            folder=folder,
            identity=known,
            progress=progress,
            on_log=on_log,
        )
        if state is not None:
            run.restore_(state)
        machine.require_same_step(run.step)
        machine.track(settings)
        dtype = next(model.parameters()).dtype
        prepare = preparer(settings, classes, labelled, machine.process, dtype)
        with deferred_signals(folder is not None) as pending:
            _train(run, items, prepare, judge, pending)
    machine.close()
    return _report(run, len(items))


def _train(run: Run, items: Items, prepare: Prepare, judge: Judge | None, pending: Pending) -> None:
    """Step until the budget is used up or a signal is pending, then choose the weights."""
    if not run.finished:
        _steps(run, items, prepare, judge, pending)
    run.choose_(judge is not None)
    if pending.waits:
        pending.deliver()


def _steps(run: Run, items: Items, prepare: Prepare, judge: Judge | None, pending: Pending) -> None:
    """Step until the budget is used up, or a signal is pending: then with a checkpoint."""
    settings, machine = run.settings, run.machine
    if judge is not None and not run.scores:
        run.scored_(judged(judge, run.model, machine, run.step, 0.0, averaged=False), run.model)
    loader = loader_of(
        items,
        settings,
        start=run.step,
        steps=run.length.steps,
        pin=machine.accelerator.device.type == "cuda",
    )
    parts = iter(machine.accelerator.prepare(loader)) if run.share() < 1 else iter(())
    while run.share() < 1:
        moment = Moment(step=run.step, share=run.share())
        torch.manual_seed(seed_for(settings.seed, 3, run.step))
        run.schedule.step_update(run.tick(moment.share))
        for hook in run.hooks:
            hook.before_step(moment)
        for part in range(settings.accumulate):
            lesson = prepare(next(parts), moment, part)
            torch.manual_seed(seed_for(settings.seed, 4, run.step, part, machine.process))
            with machine.accelerator.accumulate(run.wrapped):
                terms = run.wrapped(lesson, moment)
                loss = total(terms)
                machine.accelerator.backward(loss)
            run.saw(terms, loss)
        _step(run)
        run.log_()
        if judge is not None and run.due():
            _judge_(run, judge)
        run.keep_()
        if machine.any(pending.waits, exact=run.step % settings.log_every == 0):
            run.write_()
            pending.deliver()
    if judge is not None and run.scores[-1].step < run.step:
        _judge_(run, judge)


def _step(run: Run) -> None:
    """One step against the clipped gradient, then the hooks'."""
    clip = run.settings.optimizer.clip
    norm = run.machine.accelerator.clip_grad_norm_(
        run.trained, float("inf") if clip is None else clip
    )
    run.watch(norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    for hook in run.hooks:
        if hook.optimizer is not None:
            hook.optimizer.step()
            hook.optimizer.zero_grad()
    run.step += 1
    if run.average is not None:
        run.average.update(run.model, run.step)
    moment = Moment(step=run.step, share=run.share())
    for hook in run.hooks:
        hook.after_step(moment)


def _judge_(run: Run, judge: Judge) -> None:
    run.refuse_not_finite()
    candidates: list[tuple[nn.Module, bool]] = [(run.model, False)]
    if run.average is not None:
        candidates.append((run.average.module, True))
    for candidate, averaged in candidates:
        share = run.share()
        found = judged(judge, candidate, run.machine, run.step, share, averaged=averaged)
        run.scored_(found, candidate)
    run.write_()


def _check(model: nn.Module, items: Items, settings: TrainSettings) -> None:
    if len(items) == 0:
        raise UserError("there are no images to train on; give some.")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"{name} is {parameter.dtype}, too coarse to be trained; give model.float(), and "
                "precision: bf16 in the settings for speed."
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("no parameter of the model requires a gradient; nothing can be trained.")


def _check_parts(settings: TrainSettings, processes: int) -> None:
    shares = settings.accumulate * processes
    if settings.batch_size % shares:
        raise UserError(
            f"a batch of {settings.batch_size} images cannot be shared out evenly over {processes} "
            f"processes × {settings.accumulate} parts; give a multiple of {shares}."
        )
    part = settings.batch_size // shares
    if (settings.augment.mixup or settings.augment.cutmix) and part % 2:
        raise UserError(
            f"mixup and cutmix pair images, but each process sees {part} at a time; give a batch "
            f"size that is a multiple of {2 * shares}."
        )


@contextmanager
def _training(model: nn.Module, machine: Machine, settings: TrainSettings) -> Iterator[None]:
    """On the machine's device in train mode, then back; after an error with the old weights.

    What was drawn at random meanwhile does not show outside.
    """
    home, device = next(model.parameters()).device, machine.accelerator.device
    before = checkpoint.copy_of(model)
    model.to(device).train()
    try:
        with (
            torch.random.fork_rng(enabled=True, devices=None if device.type == "cuda" else []),
            stochastic_depth(model, settings.drop_path),
            fast_attention(model, device, settings.precision),
            muon_in_fp32(emulates_bf16(device)),
        ):
            yield
    except BaseException:
        model.load_state_dict(before)
        machine.close()
        raise
    finally:
        # WHY: a compiled forward would follow the model into copies and other devices.
        model.__dict__.pop("_compiled_call_impl", None)
        model.to(home).eval().zero_grad(set_to_none=True)


def _report(run: Run, images: int) -> FitReport:
    return FitReport(
        budget=run.length.text,
        steps=run.step,
        seconds=run.seconds(),
        images=images,
        processes=run.machine.processes,
        best_step=run.best_step,
        averaged=run.best_averaged,
        scores=tuple(run.scores),
        history=tuple(run.history),
        resumed_at=run.resumed_at,
        settings=run.settings,
    )
