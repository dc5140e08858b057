"""Two stages within one budget: whole heads, layers or blocks first, units of what is left then.

Each stage looks at the images anew, the second through the model that the first one leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from secateur.allocation.budget import CostBudget
from secateur.allocation.costs import with_fixed
from secateur.allocation.menus import least_sizes
from secateur.allocation.types import GROUPS_OF, Menu, Plan, Sizes, Units
from secateur.methods.decide import Target, counted_target, unweighed
from secateur.methods.task import Task
from secateur.models.family import Family
from secateur.models.types import Anatomy, AttentionShape, GroupName

STEPS = 10
"""How often the first stage may go further where the second alone could not meet the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one stage learnt: its menus, how it plans for a target, and how it cuts to a plan."""

    menus: list[Menu]
    plan_for: Callable[[Target | None], Plan]
    cut: Callable[[Plan], nn.Module]


Begin = Callable[[nn.Module, Anatomy, Task], Stage]
"""Look at the images through a model, for the groups of a task."""


def is_staged(task: Task) -> bool:
    """Whether the preset goes in two stages under this budget."""
    first = task.preset.first
    return first is not None and isinstance(task.budget, CostBudget) and first.group in task.groups


def staged(model: nn.Module, family: Family, anatomy: Anatomy, task: Task, begin: Begin) -> Stage:
    """Both stages as one: the second begins when the first has a plan."""
    first, budget = task.preset.first, task.budget
    if first is None or not isinstance(budget, CostBudget):
        raise TypeError("only presets with a first stage, under a cost budget, go in two")
    front = replace(task, groups=(first.group,))
    rest = replace(task, groups=tuple(group for group in task.groups if group != first.group))
    opening = begin(model, anatomy, front)
    menus = list(opening.menus)
    made: list[tuple[Plan, Stage, Plan]] = []

    def plan_for(target: Target | None) -> Plan:
        goal = target or counted_target(anatomy, task, budget)
        before = _first_plan(anatomy, rest, opening, goal, first.share)
        fixed = _settled(anatomy, before, first.group)
        opened = opening.cut(before)
        closing = begin(opened, family.read(opened), rest)
        left = Target(cost_of=with_fixed(goal.cost_of, fixed), limit=goal.limit)
        after = closing.plan_for(left)
        menus[:] = [*opening.menus, *closing.menus]
        whole = _joined(anatomy, before, after)
        made.append((whole, closing, after))
        return whole

    def cut(plan: Plan) -> nn.Module:
        closing, after = next((stage, own) for whole, stage, own in made if whole is plan)
        return closing.cut(after)

    return Stage(menus=menus, plan_for=plan_for, cut=cut)


def _first_plan(anatomy: Anatomy, rest: Task, opening: Stage, goal: Target, share: float) -> Plan:
    """The first stage's plan: its share of the saving, or more if the rest could not do it.

    Where even the smallest step would save more than is asked, and the rest can do alone, nothing.
    """
    dense, least = goal.cost_of({}), goal.cost_of(least_sizes(opening.menus))
    others = least_sizes(unweighed(anatomy, rest))
    for step in range(STEPS + 1):
        part = share + (1 - share) * step / STEPS
        limit = max(dense - part * (dense - goal.limit), least)
        plan = opening.plan_for(replace(goal, limit=limit))
        fixed = _settled(anatomy, plan, opening.menus[0].group) if opening.menus else {}
        if goal.cost_of(others | fixed) <= goal.limit:
            too_much = goal.cost_of(fixed) < goal.limit and goal.cost_of(others) <= goal.limit
            return opening.plan_for(replace(goal, limit=dense)) if too_much else plan
    return opening.plan_for(replace(goal, limit=least))


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
