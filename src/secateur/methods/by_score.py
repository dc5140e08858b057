"""From evidence to menus by a preset's criteria, and from chosen sizes to a plan."""

from dataclasses import dataclass

from torch import Tensor, nn

from secateur.allocation.menus import (
    Limits,
    block_menu,
    drop_menu,
    kept_units,
    unit_menu,
    width_menu,
)
from secateur.allocation.normalise import normalised
from secateur.allocation.types import Key, Menu, Plan, Sizes, Units, shapes_of, widths_of
from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import needs_of
from secateur.methods.task import Task
from secateur.models.family import Family
from secateur.models.types import Anatomy, Branch, GroupName
from secateur.statistics import Evidence

UNIT_GROUPS: tuple[GroupName, ...] = ("heads", "qk", "vo", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """Menus of all groups that may change, and the unit scores behind them."""

    menus: list[Menu]
    scores: dict[Key, Tensor]


def criteria_needs(task: Task) -> set[str]:
    """The kinds of evidence that the task's criteria ask for; UserError if one cannot score."""
    needs: set[str] = set()
    for group in task.groups:
        which = criteria.get(task.preset.criterion_for(group))
        needs.update(needs_of(which, group, task.preset.settings_for(group)))
    return needs


def weigh(
    model: nn.Module, family: Family, anatomy: Anatomy, task: Task, evidence: Evidence
) -> Weighed:
    """Score every unit, branch and block that may go, and turn the scores into menus."""

    def worth_of(group: GroupName, owner: str) -> Tensor:
        which = criteria.get(task.preset.criterion_for(group))
        settings, seed = task.preset.settings_for(group), task.options.seed
        return ask(
            which, model, family, anatomy, group, owner, evidence, seed=seed, settings=settings
        )

    keys: list[Key] = [(b.id, g) for b in anatomy.branches for g in _groups_of(b, task.groups)]
    if "width" in task.groups:
        keys += [(stream.id, "width") for stream in anatomy.streams]
    scores = {(owner, group): worth_of(group, owner) for owner, group in keys}
    worth = normalised(scores, task.preset.normalise, anatomy)
    menus = [_menu(anatomy, key, value, task.limits) for key, value in worth.items()]
    if "block" in task.groups:
        for block in [block for block in anatomy.blocks if block.branches]:
            scores[block.id, "block"] = worth_of("block", block.id)
            menus.append(block_menu(block, float(scores[block.id, "block"]), task.limits))
    return Weighed(menus=menus, scores=scores)


def _menu(anatomy: Anatomy, key: Key, worth: Tensor, limits: Limits) -> Menu:
    owner, group = key
    if group == "branch":
        return drop_menu(owner, group, float(worth), limits)
    if group == "width":
        stream = next(stream for stream in anatomy.streams if stream.id == owner)
        return width_menu(stream, worth, limits)
    return unit_menu(anatomy.branch(owner), group, worth, limits)


def plan_of(anatomy: Anatomy, weighed: Weighed, sizes: Sizes) -> Plan:
    """The plan in which every group takes its chosen size and keeps its best units."""
    shapes = shapes_of(anatomy, sizes)
    units: dict[str, dict[GroupName, Units]] = {}
    for branch in anatomy.branches:
        if shapes[branch.id] is None:
            continue
        for group in UNIT_GROUPS:
            size = sizes.get((branch.id, group))
            if size is not None and size < branch.shape.size(group):
                kept = kept_units(weighed.scores[branch.id, group], size)
                units.setdefault(branch.id, {})[group] = kept
    widths = widths_of(anatomy, sizes)
    for stream in anatomy.streams:
        if (width := widths[stream.id]) < stream.width:
            kept = kept_units(weighed.scores[stream.id, "width"], width)
            units[stream.id] = {"width": kept}
    loss = sum(menu.loss(sizes[menu.key]) for menu in weighed.menus)
    return Plan(shapes=shapes, widths=widths, units=units, predicted_loss=loss)


def _groups_of(branch: Branch, groups: tuple[GroupName, ...]) -> list[GroupName]:
    own = [group for group in groups if group in branch.groups]
    return own + (["branch"] if "branch" in groups else [])
