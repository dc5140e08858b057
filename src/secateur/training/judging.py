"""How good weights are on images that were held out: summed over processes.

Legend: B batch, C classes, H height, W width, n images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from secateur.models.caches import forget_cached_
from secateur.training.lesson import NotFinite
from secateur.training.machine import Machine

Sums = Mapping[str, tuple[float, float]]
"""For each measure the sum over images and their number."""


class Judge(Protocol):
    """Measures a model on every `parts`-th image, from number `part` on; lower is better.

    The first measure decides.
    """

    def __call__(self, model: nn.Module, part: int, parts: int) -> Sums:
        """Sums over this part of the images."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Means over the held-out images after `step` steps; the first value is the one that counts.

    `averaged` says whether the weights are the running average.
    """

    step: int
    share: float
    averaged: bool
    values: dict[str, float]

    @property
    def value(self) -> float:
        """What weights are chosen by; lower is better."""
        return next(iter(self.values.values()))


def judged(
    judge: Judge, model: nn.Module, machine: Machine, step: int, share: float, *, averaged: bool
) -> Scores:
    """Ask the judge in every process and add up; the same scores in all of them."""
    training = model.training
    forget_cached_(model.eval())
    with torch.no_grad():
        sums = judge(model, machine.process, machine.processes)
    model.train(training)
    flat = torch.tensor([list(pair) for pair in sums.values()], dtype=torch.float64)
    # WHY float32: not every device that processes talk through has double precision.
    if machine.processes > 1:
        device = machine.accelerator.device
        flat = machine.accelerator.reduce(flat.float().to(device), "sum").cpu().double()
    values = {name: float(flat[i, 0] / flat[i, 1]) for i, name in enumerate(sums)}
    if not all(torch.tensor(list(values.values())).isfinite()):
        listed = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        raise NotFinite(
            f"the model gives no finite outputs on the held-out images after step {step} "
            f"({listed}); look for images or weights with extreme values, or lower the learning "
            "rate.",
            step,
            f"held-out {listed}",
        )
    return Scores(step=step, share=share, averaged=averaged, values=values)
