"""Merge tokens: as many in every block, alone or behind smaller weights.

Legend: B images.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation.budget import CostBudget
from secateur.allocation.target import Target, counted_target
from secateur.allocation.types import Plan
from secateur.data.batches import Batches
from secateur.data.split import fit_and_held
from secateur.errors import OutOfReach
from secateur.methods.method import Job, Method, Prepared
from secateur.methods.task import Task
from secateur.models.caches import copy_of, evaluating
from secateur.models.derived.tokens.merge import pairs_of
from secateur.models.outputs import outputs_of
from secateur.models.types import Anatomy
from secateur.statistics.divergence import LossName, loss_for, per_image

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""What pruning the weights may leave of the MACs before tokens merge."""


class ConstantMerging:
    """The constant schedule of ToMe (arXiv 2210.09461), filled up to the budget from the end.

    The block of the last attention merges none, since nobody reads its patches. The images are not
    looked at.
    """

    def needs(self, task: Task) -> set[str]:
        """Nothing."""
        return set()

    def prepare(self, job: Job) -> Prepared:
        """There is nothing to score."""
        return Prepared(candidates=[], dense=job.model)

    def plan(self, job: Job, prepared: Prepared, target: Target | None = None) -> Plan:
        """The least constant count within the budget, then fewer in the last blocks as it fits."""
        budget = job.task.budget
        assert isinstance(budget, CostBudget)
        target = target or counted_target(job.anatomy, job.task.demand, budget)
        most = pairs_of(job.anatomy.tokens - job.anatomy.prefix_tokens)
        counts = (schedule(job.anatomy, count) for count in range(most + 1))
        merges = next((one for one in counts if _macs(job, one) <= target.limit), None)
        if merges is None:
            least = _macs(job, schedule(job.anatomy, most))
            raise OutOfReach(
                f"budget '{job.task.request.goal}' is out of reach by merging tokens alone: with "
                f"half of the patches merged in every block, {100 * least / target.dense:.1f}% "
                "macs are left; raise the budget, or prune the weights first."
            )
        for block in reversed(merges):
            fewer = merges | {block: max(merges[block] - 1, 0)}
            if _macs(job, fewer) <= target.limit:
                merges = fewer
        return Plan(shapes=job.anatomy.shapes, merges={k: n for k, n in merges.items() if n})

    def cut(self, job: Job, prepared: Prepared, plan: Plan) -> nn.Module:
        """A copy that merges."""
        smaller = copy_of(job.model)
        job.family.put_merges_(smaller, plan.merges)
        return smaller


def schedule(anatomy: Anatomy, count: int) -> dict[str, int]:
    """`count` merged tokens in every block but the last with attention, or as many as there are."""
    attending = [b.block for b in anatomy.branches if b.kind == "attention"]
    patches, merges = anatomy.tokens - anatomy.prefix_tokens, dict[str, int]()
    for index in attending[:-1]:
        merges[anatomy.blocks[index].id] = min(count, pairs_of(patches))
        patches -= min(count, pairs_of(patches))
    return merges


def _macs(job: Job, merges: dict[str, int]) -> float:
    task = job.task
    anatomy = job.family.read(job.model, exact_tail=task.exact_tail, merges=merges)
    return float(anatomy.cost().macs)


class WeightsAndTokens:
    """A method for weights, then merging by the constant schedule down to the budget.

    How much each of the two takes is chosen among a few shares by the divergence of whole models
    from the dense one, on images held out of the cut.
    """

    def __init__(self, weights: Method[Any]) -> None:
        self.weights = weights

    def needs(self, task: Task) -> set[str]:
        """What the method for weights needs."""
        return self.weights.needs(_of_weights(task))

    def prepare(self, job: Job) -> Prepared:
        """The method's own look at the images."""
        found: Prepared = self.weights.prepare(replace(job, task=_of_weights(job.task)))
        return found

    def plan(self, job: Job, prepared: Prepared, target: Target | None = None) -> Plan:
        """The whole plan nearest to the dense model on held-out images; OutOfReach without any."""
        budget = job.task.budget
        assert isinstance(budget, CostBudget)
        goal = target or counted_target(job.anatomy, job.task.demand, budget)
        fit, held = fit_and_held(job.images.batches)
        trial = replace(job, images=replace(job.images, batches=fit))
        dense = _outputs(job.model, held)
        loss = job.images.loss or loss_for(job.anatomy.num_classes)
        tried = (
            (_apart(dense, _outputs(smaller, held), loss), plan)
            for plan, smaller in self._tried(trial, prepared, goal)
        )
        best = min(tried, key=lambda one: one[0], default=None)
        if best is None:
            raise OutOfReach(
                f"budget '{job.task.request.goal}' is out of reach, with smaller weights and with "
                "merged tokens; raise the budget, or name more groups."
            )
        return best[1]

    def cut(self, job: Job, prepared: Prepared, plan: Plan) -> nn.Module:
        """The method's cut, which then merges."""
        weights = replace(plan, merges={})
        smaller = self.weights.cut(replace(job, task=_of_weights(job.task)), prepared, weights)
        job.family.put_merges_(smaller, plan.merges)
        return smaller

    def _tried(
        self, job: Job, prepared: Prepared, goal: Target
    ) -> Iterator[tuple[Plan, nn.Module]]:
        """A whole plan for every share of the MACs that weights may keep, and its model."""
        task, last = _of_weights(job.task), goal.limit / goal.dense
        for share in (*(share for share in SHARES if share > last), last):
            limit = replace(goal, limit=share * goal.dense)
            weights_job = replace(job, task=task)
            try:
                weights = self.weights.plan(weights_job, prepared, limit)
                smaller = self.weights.cut(weights_job, prepared, weights)
                light = replace(job, model=smaller, anatomy=job.family.read(smaller))
                merges = ConstantMerging().plan(light, prepared, goal).merges
            except OutOfReach:
                continue
            job.family.put_merges_(smaller, merges)
            yield replace(weights, merges=merges), smaller


def _of_weights(task: Task) -> Task:
    """The task without its tokens."""
    return replace(task, groups=tuple(group for group in task.groups if group != "tokens"))


@torch.no_grad()
def _outputs(model: nn.Module, batches: Batches) -> list[Tensor]:
    with evaluating(model):
        return [outputs_of(model(batch.images_BCHW)) for batch in batches]


def _apart(dense: list[Tensor], smaller: list[Tensor], loss: LossName) -> float:
    """Mean divergence of outputs (B, C) from the dense ones, batch by batch."""
    pairs = zip(dense, smaller, strict=True)
    return float(torch.cat([per_image(d_BC, s_BC, loss) for d_BC, s_BC in pairs]).mean())
