"""The protocol of all methods: how calibration images become a plan and a smaller model."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import nn

from secateur.allocation.target import Target
from secateur.allocation.types import Candidates, Plan
from secateur.methods.images import Images
from secateur.methods.task import Task
from secateur.models.host import Host
from secateur.progress import timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Host):
    """The inputs of a pruning run: a dense model as its host, the resolved task, the images."""

    task: Task
    images: Images

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time spent inside to that of a stage."""
        return timed(self.images.seconds, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The result of `prepare`, from which plans are made. A method adds fields of its own.

    `dense` is the model that will be cut: the one given, or the same function in another basis.
    """

    candidates: list[Candidates]
    dense: nn.Module


P = TypeVar("P", bound=Prepared)


class Method(Protocol[P]):
    """A way to prune, as four functions. The choices of a preset are in `job.task`.

    `prepare` looks at the images and does not depend on the amount of the budget, so that one
    preparation serves several budgets; `plan` and `cut` may be called any number of times.
    """

    def needs(self, task: Task) -> set[str]:
        """Statistics of the dense model from its first pass; UserError for what cannot work."""
        ...

    def prepare(self, job: Job) -> P:
        """Scores or measured candidates, from passes over the images."""
        ...

    def plan(self, job: Job, prepared: P, target: Target | None = None) -> Plan:
        """One size per group within the target, by default that of the task's budget."""
        ...

    def cut(self, job: Job, prepared: P, plan: Plan) -> nn.Module:
        """A smaller copy of the dense model, repaired; `plan` is one that this method made."""
        ...
