"""A short polish without labels: the pruned model learns from the dense one.

First every branch learns to give the dense stream after it, then the whole model to give the dense
output, on the calibration images alone. What is returned is the best of several states by the
divergence on held-out images, the unpolished one among them.
Legend: B batch, C outputs, n images.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from secateur.data.batches import Batches
from secateur.errors import UserError
from secateur.models.caches import forget_cached_
from secateur.models.runner import Runner, Trace
from secateur.statistics.observe import frozen
from secateur.training.budget import PolishBudget
from secateur.training.images import augment, require_images, shuffled, split
from secateur.training.losses import branch_loss, divergence, output_loss

TICKS = 1000
"""The schedule counts thousandths of the budget, so that steps and time are the same to it."""

OnStep = Callable[[int, int], None]
Judge = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishSettings:
    """How the polish trains; the learning rate was chosen on calibration images alone.

    `layerwise` and `warmup` are shares of the budget, `least_area` is the smallest crop's share of
    an image.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    batch_size: int = 32
    warmup: float = 0.1
    layerwise: float = 0.2
    temperature: float = 1.0
    token_weight: float = 1.0
    clip: float = 1.0
    least_area: float = 0.7
    flip: bool = True
    checks: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """KL(dense ‖ pruned) on the held-out images after a share of the budget, in nats."""

    share: float
    step: int
    kl: float
    kl_averaged: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PolishReport:
    """What a polish did. KL(dense ‖ pruned) is in nats, mean over `held_out` images.

    `best_step` is the step whose state was kept (0: the unpolished one), `averaged` whether it
    is the running average of the weights.
    """

    budget: str
    steps: int
    seconds: float
    images: int
    held_out: int
    kl_before: float
    kl_after: float
    best_step: int
    averaged: bool
    checks: tuple[Check, ...]
    settings: PolishSettings

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name as plain data."""
        return asdict(self) | {"checks": [asdict(check) for check in self.checks]}


def require_polishable(model: nn.Module, images: int) -> None:
    """UserError, before any work, for too few images or weights too coarse to be trained."""
    require_images(images)
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"the polish trains in float32, but {name} is {parameter.dtype}; give model.float()"
                ", or leave the polish out."
            )


def polish_note(report: PolishReport) -> str:
    """A sentence on what a polish did."""
    return (
        f"Polished without labels: {report.steps} steps in {report.seconds:.0f} s on "
        f"{report.images} images; KL(dense ‖ pruned) on {report.held_out} held-out images went "
        f"from {report.kl_before:.3g} to {report.kl_after:.3g} nats."
    )


def polish_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    budget: PolishBudget,
    seed: int = 0,
    on_step: OnStep | None = None,
    settings: PolishSettings | None = None,
    channels: Sequence[int] | None = None,
) -> PolishReport:
    """Train `student`, cut from `teacher`, on the images of `batches`; leaves it in eval mode.

    `channels`: those of the teacher's stream that a narrower student kept. Budgets in steps repeat
    for the same seed. `on_step(done, total)` counts steps, or seconds. If training is interrupted
    or fails (UserError naming the step that is not finite), the student has its old weights back.
    """
    started = time.perf_counter()
    settings = settings or PolishSettings()
    require_polishable(student, batches.images)
    train_nCHW, held_nCHW = split(batches)
    with frozen(teacher, gradient=True), _training(student):
        judge = _judge(teacher, held_nCHW, settings.batch_size)
        before = judge(student)
        run = _Run(budget=budget, settings=settings, started=started, kl=before)
        run.state = _copy(student)
        kept = None if channels is None else torch.tensor(channels)
        look = partial(Runner.of(teacher).trace, channels=kept)
        _train(run, Runner.of(student), look, train_nCHW, judge, seed, on_step)
        student.load_state_dict(run.state)
    return PolishReport(
        budget=budget.text,
        steps=run.step,
        seconds=time.perf_counter() - started,
        images=len(train_nCHW),
        held_out=len(held_nCHW),
        kl_before=before,
        kl_after=run.kl,
        best_step=run.best_step,
        averaged=run.averaged,
        checks=tuple(run.checks),
        settings=settings,
    )


@dataclass(slots=True, kw_only=True)
class _Run:
    """A polish in progress; `kl` and what follows describe the best state so far."""

    budget: PolishBudget
    settings: PolishSettings
    started: float
    step: int = 0
    checks: list[Check] = field(default_factory=list)
    kl: float
    best_step: int = 0
    averaged: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)

    def share(self) -> float:
        return self.budget.share(self.step, time.perf_counter() - self.started)


def _train(
    run: _Run,
    student: Runner,
    teacher: Callable[[Tensor], Trace],
    train_nCHW: Tensor,
    judge: Judge,
    seed: int,
    on_step: OnStep | None,
) -> None:
    """Step until the budget is used up; check now and then, and keep the best state."""
    settings = run.settings
    optimizer = create_optimizer_v2(
        student.model, "adamw", settings.learning_rate, settings.weight_decay
    )
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=TICKS,
        warmup_t=round(settings.warmup * TICKS),
        # WHY not 0: the first of few steps would be lost.
        warmup_lr_init=0.1 * settings.learning_rate,
        t_in_epochs=False,
    )
    average = ModelEmaV3(student.model, decay=0.999, use_warmup=True)
    generator = torch.Generator().manual_seed(seed)
    due = 1
    for images_BCHW in shuffled(train_nCHW, settings.batch_size, generator):
        if (share := run.share()) >= 1:
            break
        schedule.step_update(int(share * TICKS))
        images_BCHW = augment(images_BCHW, settings.least_area, generator, flip=settings.flip)
        with torch.no_grad():
            target = teacher(images_BCHW)
        loss = _loss(student, images_BCHW, target, share < settings.layerwise, settings)
        _descend(student.model, optimizer, loss, run)
        run.step += 1
        average.update(student.model, run.step)
        if run.share() * settings.checks >= due:
            _check(run, student.model, average.module, judge)
            due = int(run.share() * settings.checks) + 1
        _tell(run, on_step)
    if run.step > (run.checks[-1].step if run.checks else 0):
        _check(run, student.model, average.module, judge)


def _loss(
    student: Runner, images_BCHW: Tensor, target: Trace, layerwise: bool, settings: PolishSettings
) -> Tensor:
    if layerwise and len(student):
        return branch_loss(student, images_BCHW, target)
    return output_loss(
        student.trace(images_BCHW),
        target,
        student.anatomy.prefix_tokens,
        settings.temperature,
        settings.token_weight,
    )


def _descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, run: _Run) -> None:
    """One step against the clipped gradient; UserError where it is not finite."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), run.settings.clip)
    _require_finite(run.step + 1, {"loss": loss.item(), "gradient norm": norm.item()})
    optimizer.step()
    forget_cached_(model)


def _check(run: _Run, model: nn.Module, averaged: nn.Module, judge: Judge) -> None:
    """Judge the weights and their running average; keep the better one if it is the best yet."""
    found = (judge(model), judge(averaged))
    names = ("held-out KL", "held-out KL of averaged weights")
    _require_finite(run.step, dict(zip(names, found, strict=True)))
    run.checks.append(Check(share=run.share(), step=run.step, kl=found[0], kl_averaged=found[1]))
    for kl, candidate in zip(found, (model, averaged), strict=True):
        if kl < run.kl:
            run.kl, run.best_step, run.averaged = kl, run.step, candidate is averaged
            run.state = _copy(candidate)


def _require_finite(step: int, values: Mapping[str, float]) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    listed = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    raise UserError(
        f"the polish failed at step {step}: {listed}; the model is as it was before the polish; "
        "leave the polish out, or look for images or weights with extreme values."
    )


def _judge(teacher: nn.Module, held_nCHW: Tensor, batch_size: int) -> Judge:
    """A function from a model to its KL(dense ‖ model) on the held-out images, in nats."""
    parts = held_nCHW.split(batch_size)

    @torch.no_grad()
    def outputs(model: nn.Module) -> Tensor:
        forget_cached_(model)
        return torch.cat([model(images_BCHW) for images_BCHW in parts])

    wanted_nC = outputs(teacher)
    return lambda model: float(divergence(outputs(model), wanted_nC))


def _tell(run: _Run, on_step: OnStep | None) -> None:
    if on_step is not None:
        total = run.budget.steps or max(1, round(run.budget.seconds or 0))
        on_step(min(total, round(run.share() * total)), total)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """All weights trainable, in eval mode: few images leave no room for dropout.

    Afterwards gradients are gone and flags as they were; after an error also the weights.
    """
    before = _copy(model)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval().requires_grad_(True)
    try:
        yield
    except BaseException:
        model.load_state_dict(before)
        raise
    finally:
        model.zero_grad(set_to_none=True)
        forget_cached_(model)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
