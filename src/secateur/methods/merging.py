"""Merge tokens: as many in every block, as few as the budget allows."""

from torch import nn

from secateur.allocation.budget import CostBudget
from secateur.allocation.target import Target, counted_target
from secateur.allocation.types import Plan
from secateur.errors import OutOfReach
from secateur.methods.method import Job, Prepared
from secateur.methods.task import Task
from secateur.models.caches import copy_of
from secateur.models.derived.tokens.merge import pairs_of
from secateur.models.types import Anatomy


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
