"""A training run in progress: what it is at, what it has seen, and what a checkpoint keeps."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from secateur.progress import Progress
from secateur.training import checkpoint
from secateur.training.judging import Scores
from secateur.training.lesson import Classroom, Hook, NotFinite, Terms
from secateur.training.machine import Machine
from secateur.training.run_length import RunLength
from secateur.training.settings import TrainSettings
from secateur.training.updates.optimizer import optimizer_for, schedule_for

TICKS = 1000
"""Steps of the schedule where the budget is a time."""

OnLog = Callable[[Mapping[str, float]], None]


@dataclass(slots=True, kw_only=True)
class Run:
    """A run in progress; `best` and what begins so describe the best weights so far."""

    model: nn.Module
    room: Classroom
    hooks: list[Hook]
    settings: TrainSettings
    length: RunLength
    machine: Machine
    folder: Path | None
    identity: Mapping[str, Any]
    progress: Progress | None
    on_log: OnLog | None
    step: int = 0
    finished: bool = False
    resumed_at: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_value: float = float("inf")
    best_step: int = 0
    best_averaged: bool = False
    wrapped: nn.Module = field(init=False)
    trained: list[nn.Parameter] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: Scheduler = field(init=False)
    average: ModelEmaV3 | None = field(init=False)
    _before: float = 0.0
    _started: float = field(default_factory=time.perf_counter)
    _written: float = field(default_factory=time.perf_counter)
    _sums: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    _agreed: tuple[int, float] = (-1, 0.0)
    _bad: Tensor = field(init=False)
    _lap: tuple[int, float] = field(init=False)

    def __post_init__(self) -> None:
        """Optimizer, schedule, running average; the model must be on its device already."""
        device = self.machine.accelerator.device
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optimizer_for(self.model, self.settings)
        self.schedule = schedule_for(self.optimizer, self.settings, self.ticks)
        decay = self.settings.ema
        self.average = None if decay is None else ModelEmaV3(self.model, decay, use_warmup=True)
        if self.settings.compile:
            self.model.compile()
        self.wrapped = self.machine.accelerator.prepare(self.room)
        self._bad = torch.tensor([-1.0, 0.0, 0.0], device=device)
        self._lap = (0, time.perf_counter())

    @property
    def ticks(self) -> int:
        """Into how many parts the schedule divides the budget."""
        return self.length.steps or TICKS

    def tick(self, share: float) -> int:
        """The part of the schedule that belongs to a share of the budget."""
        return round(share * self.ticks) if self.length.steps else int(share * self.ticks)

    def seconds(self) -> float:
        """Time spent, earlier parts of a run that was stopped included."""
        return self._before + time.perf_counter() - self._started

    def share(self) -> float:
        """The used share of the budget, the same in all processes."""
        if self.length.steps is not None or self.machine.processes == 1:
            return self.length.share(self.step, self.seconds())
        # Asked once per step, since processes wait for each other to agree on the time.
        if self._agreed[0] != self.step:
            from accelerate.utils import broadcast

            now = torch.tensor(self.seconds(), device=self.machine.accelerator.device)
            self._agreed = self.step, self.length.share(self.step, float(broadcast(now)))
        return self._agreed[1]

    def saw(self, terms: Terms, loss: Tensor) -> None:
        """Add the terms of one forward pass to the means of the log."""
        for name, value in {"loss": loss, **terms}.items():
            value = value.detach().float()
            before, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = before + value, count + 1

    def watch(self, norm: Tensor) -> None:
        """Remember the first step whose loss or gradient is not finite.

        WHY not at once: reading a number from an accelerator makes the whole run wait.
        """
        total, count = self._sums["loss"]
        now = torch.stack([torch.full_like(total, self.step + 1), total / count, norm.to(total)])
        self._bad = torch.where((self._bad[0] < 0) & ~now.isfinite().all(), now, self._bad)
        if self._bad.device.type == "cpu":
            self.refuse_not_finite()

    def refuse_not_finite(self) -> None:
        """NotFinite naming the first step whose loss or gradient was not, if any."""
        step, loss, norm = self._bad.tolist()
        if step < 0:
            return
        kept = "nothing was saved"
        if self.folder is not None and (self.folder / checkpoint.FILE).is_file():
            kept = f"the last good checkpoint is kept in {self.folder}"
        raise NotFinite(
            f"training failed at step {step:.0f}: the loss or its gradient is not finite; {kept}; "
            "begin anew with a lower learning rate, or look for images or weights with extreme "
            "values.",
            int(step),
            f"loss {loss:.3g}, gradient norm {norm:.3g}",
        )

    def log_(self) -> None:
        """Report progress, and every `log_every` steps the means since the last report."""
        size = self.settings.batch_size
        if self.progress is not None and self.machine.main:
            done, whole = self.step * size, (self.length.steps or 0) * size
            if not whole:
                done, whole = round(self.seconds()), round(self.length.seconds or 0)
            self.progress("train", min(done, whole), whole)
        last = self.length.steps is not None and self.step == self.length.steps
        if self.step % self.settings.log_every and not last:
            return
        self.refuse_not_finite()
        reduce = self.machine.accelerator.reduce
        means = {k: float(reduce(v / n, "mean")) for k, (v, n) in self._sums.items()}
        now = time.perf_counter()
        rate = (self.step - self._lap[0]) * size / max(1e-9, now - self._lap[1])
        share = self.share()
        row = {
            "step": self.step,
            "share": share,
            **means,
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            "images_per_second": rate,
            "seconds_left": self.seconds() * (1 / share - 1),
        }
        for hook in self.hooks:
            row |= hook.log()
        self._sums, self._lap = {}, (self.step, now)
        self._tell(row)

    def _tell(self, row: dict[str, float]) -> None:
        self.history.append(row)
        values = {key: value for key, value in row.items() if key != "step"}
        self.machine.accelerator.log(values, step=self.step)
        if self.on_log is not None and self.machine.main:
            self.on_log(row)

    def due(self) -> bool:
        """Whether a further part of the budget was used since the last look at held-out images."""
        checks = self.settings.checks
        seen = self.scores[-1].share if self.scores else 0.0
        return int(self.share() * checks + 1e-9) > int(seen * checks + 1e-9)

    def scored_(self, found: Scores, model: nn.Module) -> None:
        """Note a score, and the weights if they are the best yet."""
        self.scores.append(found)
        if found.value < self.best_value:
            self.best_value, self.best_step = found.value, found.step
            self.best_averaged, self.best = found.averaged, checkpoint.copy_of(model)
        values = {f"held_out_{key}": value for key, value in found.values.items()}
        suffix = "_averaged" if found.averaged else ""
        told = {key + suffix: value for key, value in values.items()}
        self.machine.accelerator.log(told, step=self.step)
        if self.on_log is not None and self.machine.main:
            self.on_log({"step": self.step, **told})

    def choose_(self, was_judged: bool) -> None:
        """Give the model the weights that come out, and write the end of the run down."""
        if not self.finished:
            self.refuse_not_finite()
            if not was_judged or self.settings.keep == "last":
                chosen = self._last()
                self.best, self.best_step = checkpoint.copy_of(chosen), self.step
                self.best_averaged = chosen is not self.model
            self.finished = True
            self.write_()
        self.model.load_state_dict(self.best)

    def _last(self) -> nn.Module:
        """The weights in the end, or their running average where it was not judged worse."""
        if self.average is None:
            return self.model
        values = {s.averaged: s.value for s in self.scores if s.step == self.step}
        worse = len(values) == 2 and values[True] > values[False]
        return self.model if worse else self.average.module

    def keep_(self) -> None:
        """Write a checkpoint if it is time."""
        if time.perf_counter() - self._written >= self.settings.checkpoint_seconds:
            self.write_()

    def write_(self) -> None:
        """Write a checkpoint, unless something in it is not finite."""
        self._written = time.perf_counter()
        self.refuse_not_finite()
        if self.folder is not None and self.machine.main:
            checkpoint.write(self.folder, self.state())

    def state(self) -> dict[str, Any]:
        """Everything from which the run can go on; of a finished one, what came out of it."""
        kept: dict[str, Any] = {
            "identity": dict(self.identity),
            "step": self.step,
            "seconds": self.seconds(),
            "finished": self.finished,
            "history": self.history,
            "scores": [asdict(score) for score in self.scores],
            "best": self.best,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "best_averaged": self.best_averaged,
            "hooks": [_hook_state(hook) for hook in self.hooks],
        }
        if self.finished:
            return kept
        return kept | {
            "sums": self._sums,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
        }

    def restore_(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        device = self.machine.accelerator.device
        self.step = self.resumed_at = state["step"]
        self._before, self.finished = state["seconds"], state["finished"]
        self.history, self.best = list(state["history"]), dict(state["best"])
        self.scores = [Scores(**score) for score in state["scores"]]
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self.best_averaged = state["best_averaged"]
        for hook, kept in zip(self.hooks, state["hooks"], strict=True):
            _restore_hook(hook, kept)
        self._lap = (self.step, time.perf_counter())
        if self.finished:
            return
        self._sums = {key: (v.to(device), n) for key, (v, n) in state["sums"].items()}
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])


def _hook_state(hook: Hook) -> dict[str, Any]:
    return {
        "module": None if hook.module is None else hook.module.state_dict(),
        "optimizer": None if hook.optimizer is None else hook.optimizer.state_dict(),
        "own": hook.state_dict(),
    }


def _restore_hook(hook: Hook, state: Mapping[str, Any]) -> None:
    if hook.module is not None:
        hook.module.load_state_dict(state["module"])
    if hook.optimizer is not None:
        hook.optimizer.load_state_dict(state["optimizer"])
    hook.load_state_dict(state["own"])
