"""The exact tail of what a method cuts, and its place in a budget of milliseconds."""

from dataclasses import replace

from torch import nn

from secateur.allocation.target import Target
from secateur.allocation.types import Plan
from secateur.errors import OutOfReach
from secateur.methods.method import Job, Prepared
from secateur.methods.task import Task
from secateur.methods.to_latency import latency_target, times_count
from secateur.models.caches import copy_of


class TailOnly:
    """The dense model with the exact tail and nothing removed: what a lossless budget allows."""

    def needs(self, task: Task) -> set[str]:
        """Nothing."""
        return set()

    def prepare(self, job: Job) -> Prepared:
        """There is no choice."""
        return Prepared(candidates=[], dense=job.model)

    def plan(self, job: Job, prepared: Prepared, target: Target | None = None) -> Plan:
        """Everything stays."""
        return Plan(shapes=job.anatomy.shapes)

    def cut(self, job: Job, prepared: Prepared, plan: Plan) -> nn.Module:
        """A copy."""
        return copy_of(job.model)


def with_tail(job: Job, smaller: nn.Module) -> nn.Module:
    """A cut model as its task wants it: with the exact tail or as it is."""
    if job.task.exact_tail:
        job.family.put_tail_(smaller)
    return smaller


def with_target(job: Job) -> tuple[Job, Target | None]:
    """A job with the target of its budget in milliseconds; None for other budgets.

    The exact tail, which costs small models more calls than it saves, is left out where the dense
    model was timed to be slower with it, unless it was asked for.
    """
    free = job.task.exact_tail and job.task.request.exact_tail is None and times_count(job.task)

    def target_of(one: Job) -> Target | None:
        return latency_target(one, one.task, one.images.progress)

    written = replace(job.task, exact_tail=False)
    plain = replace(job, task=written, anatomy=job.family.read(job.model)) if free else job
    try:
        target = target_of(job)
    except OutOfReach:
        if not free:
            raise
        return plain, target_of(plain)
    if free and target is not None and target.cost_of({}) > target.dense:
        return plain, target_of(plain)
    return job, target
