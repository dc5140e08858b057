"""Prune in another basis of the stream: the dense model with its stream in principal components.

Its outputs are the same; its channels are others, so that the last ones carry least.

Legend: D residual width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.allocation.target import Target
from secateur.allocation.types import Plan
from secateur.data.batches import Batches
from secateur.methods.method import Job, Method, Prepared
from secateur.methods.task import Task
from secateur.models.caches import copy_of
from secateur.models.host import Host
from secateur.models.rotation_check import require_rotatable
from secateur.progress import Progress
from secateur.statistics import observe
from secateur.statistics.registry import STREAM
from secateur.surgery.rotate import principal_basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned(Prepared):
    """What another method prepared on the rotated model."""

    inner: Any


class Rotated:
    """Another method, carried out on the rotated model."""

    def __init__(self, method: Method[Any]) -> None:
        self.method = method

    def needs(self, task: Task) -> set[str]:
        """Nothing of the model as it is given; UserError where the inner method cannot work."""
        self.method.needs(task)
        return set()

    def prepare(self, job: Job) -> Turned:
        """Rotate a copy of the model, then prepare on that."""
        with job.timed("rotate"):
            turned = rotated(job, job.images.batches, job.images.progress)
        inner = self.method.prepare(replace(job, model=turned))
        return Turned(candidates=inner.candidates, dense=turned, inner=inner)

    def plan(self, job: Job, prepared: Turned, target: Target | None = None) -> Plan:
        """The inner method's plan."""
        return self.method.plan(replace(job, model=prepared.dense), prepared.inner, target)

    def cut(self, job: Job, prepared: Turned, plan: Plan) -> nn.Module:
        """The inner method's cut of the rotated model."""
        return self.method.cut(replace(job, model=prepared.dense), prepared.inner, plan)


def rotated(host: Host, batches: Batches, progress: Progress | None = None) -> nn.Module:
    """A copy whose stream has channels of descending energy; one pass over the images."""
    require_rotatable(host)
    copy, family = copy_of(host.model), host.family

    def on_batch(done: int) -> None:
        if progress is not None:
            progress("rotate", done, batches.images)

    # WHY: in a basis that is none, norms are RMS norms already and the stream has no mean, so
    # what is seen is what will be rotated.
    device = next(copy.parameters()).device
    family.rotate_(copy, torch.eye(host.anatomy.width, dtype=torch.float64, device=device))
    seen = observe(copy, batches, {"stream_gram"}, on_batch=on_batch).of("stream_gram", STREAM)
    family.rotate_(copy, principal_basis(seen["gram"]))
    return copy
