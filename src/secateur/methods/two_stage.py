"""Two stages within one budget: whole heads, layers or blocks first, units of what is left then.

Each stage looks at the images anew, the second through the model that the first one leaves.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.allocation.budget import CostBudget
from secateur.allocation.candidates import least_sizes
from secateur.allocation.costs import with_fixed
from secateur.allocation.target import Target, counted_target, unweighed
from secateur.allocation.types import GROUPS_OF, Plan, Sizes, Units
from secateur.methods.method import Job, Method, Prepared
from secateur.methods.task import Task, planned
from secateur.models.host import host_of
from secateur.models.types import Anatomy, AttentionShape, GroupName

STEPS = 10
"""How often the first stage may go further where the second alone could not meet the budget."""


def is_staged(task: Task) -> bool:
    """Whether the preset goes in two stages under this budget."""
    first = task.preset.first
    return first is not None and isinstance(task.budget, CostBudget) and first.group in task.groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A whole plan, and the second stage that it ends with."""

    whole: Plan
    job: Job
    prepared: Prepared
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Prepared):
    """What the first stage learnt, and the second stages of the plans made so far."""

    first: Prepared
    made: list[Made] = field(default_factory=list)


class TwoStage:
    """A method twice: for the group of the first stage, then through the model it leaves."""

    def __init__(self, method: Method[Any]) -> None:
        self.method = method

    def needs(self, task: Task) -> set[str]:
        """The statistics of the first stage; UserError where either stage cannot work."""
        self.method.needs(task)
        return self.method.needs(_stages(task)[0])

    def prepare(self, job: Job) -> Opened:
        """Prepare the first stage; the second begins when the first has a plan."""
        opening = self.method.prepare(replace(job, task=_stages(job.task)[0]))
        return Opened(candidates=list(opening.candidates), dense=job.model, first=opening)

    def plan(self, job: Job, prepared: Opened, target: Target | None = None) -> Plan:
        """Both plans as one on the dense model."""
        first, budget = job.task.preset.first, job.task.budget
        if first is None or not isinstance(budget, CostBudget):
            raise TypeError("only presets with a first stage, under a cost budget, go in two")
        front, rest = _stages(job.task)
        opening, anatomy = replace(job, task=front), job.anatomy
        goal = target or counted_target(anatomy, job.task.demand, budget)
        before = self._first_plan(opening, prepared.first, rest, goal, first.share)
        fixed = _settled(anatomy, before, first.group)
        opened = self.method.cut(opening, prepared.first, before)
        second = planned(host_of(opened), rest)
        closing = replace(job, model=opened, anatomy=second.anatomy, task=rest)
        ready = self.method.prepare(closing)
        left = Target(cost_of=with_fixed(goal.cost_of, fixed), limit=goal.limit, dense=goal.dense)
        after = self.method.plan(closing, ready, left)
        prepared.candidates[:] = [*prepared.first.candidates, *ready.candidates]
        whole = _joined(anatomy, before, after)
        prepared.made.append(Made(whole=whole, job=closing, prepared=ready, plan=after))
        return whole

    def cut(self, job: Job, prepared: Opened, plan: Plan) -> nn.Module:
        """The second stage's cut of the model that the first one left."""
        made = next(made for made in prepared.made if made.whole is plan)
        return self.method.cut(made.job, made.prepared, made.plan)

    def _first_plan(
        self, opening: Job, prepared: Prepared, rest: Task, goal: Target, share: float
    ) -> Plan:
        """The first stage's plan: its share of the saving, or more if the rest could not do it.

        Where even the smallest step would save more than is asked, and the rest can do alone,
        nothing.
        """
        anatomy, candidates = opening.anatomy, prepared.candidates

        def at(limit: float) -> Plan:
            return self.method.plan(opening, prepared, replace(goal, limit=limit))

        dense, least = goal.cost_of({}), goal.cost_of(least_sizes(candidates))
        others = least_sizes(unweighed(anatomy, rest.demand))
        for step in range(STEPS + 1):
            part = share + (1 - share) * step / STEPS
            plan = at(max(dense - part * (dense - goal.limit), least))
            fixed = _settled(anatomy, plan, candidates[0].group) if candidates else {}
            if goal.cost_of(others | fixed) <= goal.limit:
                too_much = goal.cost_of(fixed) < goal.limit and goal.cost_of(others) <= goal.limit
                return at(dense) if too_much else plan
        return at(least)


def _stages(task: Task) -> tuple[Task, Task]:
    """The task of the first stage, and that of the second."""
    first = task.preset.first
    if first is None:
        raise TypeError("only presets with a first stage go in two")
    rest = tuple(group for group in task.groups if group != first.group)
    return replace(task, groups=(first.group,)), replace(task, groups=rest)


def _settled(anatomy: Anatomy, plan: Plan, group: GroupName) -> Sizes:
    """The sizes of one group that a plan has chosen."""
    sizes: Sizes = {}
    for block in anatomy.blocks:
        if group == "block" and block.branches:
            sizes[block.id, "block"] = int(any(plan.shapes[name] for name in block.branches))
    for branch in anatomy.branches:
        shape = plan.shapes[branch.id]
        if group == "branch":
            sizes[branch.id, "branch"] = int(shape is not None)
        elif shape is not None and group in GROUPS_OF[branch.kind]:
            sizes[branch.id, group] = shape.size(group)
    return sizes


def _joined(anatomy: Anatomy, before: Plan, after: Plan) -> Plan:
    """One plan on the dense model that does what both do one after the other."""
    units = {owner: dict(own) for owner, own in before.units.items()}
    for owner, own in after.units.items():
        heads = before.units.get(owner, {}).get("heads")
        for group, kept in own.items():
            per_head = heads is not None and group in ("qk", "vo")
            dense = anatomy.branch(owner).shape if per_head else None
            if isinstance(dense, AttentionShape) and heads is not None:
                kept = _for_dense_heads(kept, heads, dense.heads)
            units.setdefault(owner, {})[group] = kept
    return Plan(
        shapes={name: after.shapes.get(name) for name in anatomy.shapes},
        widths=after.widths,
        units=units,
        predicted_loss=before.predicted_loss + after.predicted_loss,
    )


def _for_dense_heads(kept: Units, heads: Units, count: int) -> Units:
    """Kept dims of the surviving heads as one tuple per dense head; others get any."""
    of_head = dict(zip(heads, kept, strict=True))
    filler = tuple(range(len(next(iter(of_head.values())))))  # type: ignore[arg-type]
    return tuple(of_head.get(head, filler) for head in range(count))  # type: ignore[return-value]
