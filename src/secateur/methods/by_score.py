"""Prune by scores: a criterion ranks the units of each group, a solver chooses the sizes."""

from dataclasses import dataclass, replace
from functools import partial

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
from secateur.allocation.target import Target, decide
from secateur.allocation.types import Key, Menu, Plan, Sizes, Units, shapes_of, widths_of
from secateur.criteria import criteria, score
from secateur.criteria.registry import Question, needs_of
from secateur.methods.cutting import cut_copy
from secateur.methods.measured import measure_menus, wants_measuring
from secateur.methods.method import Job, Prepared
from secateur.methods.scored import Weighed
from secateur.methods.task import Task
from secateur.models.family import Family
from secateur.models.stream import stream_weights
from secateur.models.types import ALL_GROUPS, Anatomy, Branch, GroupName
from secateur.statistics import Evidence
from secateur.surgery.cut import repair_needs

UNIT_GROUPS: tuple[GroupName, ...] = ("heads", "qk", "vo", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Prepared):
    """Candidates with the unit scores behind them, and the statistics that repairs rest on."""

    scores: dict[Key, Tensor]
    evidence: Evidence


class ByScore:
    """Score units from one pass over the images, choose sizes, select units, repair writers."""

    def needs(self, task: Task) -> set[str]:
        """The statistics that the task's criteria and repair ask for."""
        preset = task.preset
        return criteria_needs(task) | repair_needs(
            preset.repair, set(task.groups), preset.stand_in, rotated=preset.rotate
        )

    def prepare(self, job: Job) -> Scored:
        """Score every unit; measure candidates on the output where the preset says so."""
        model, family, anatomy, task = job.model, job.family, job.anatomy, job.task
        evidence = job.images.observe(model, self.needs(task))
        with job.timed("weigh"):
            weighed = weigh(model, family, anatomy, task, evidence)
        if wants_measuring(task):
            with job.timed("probe"):
                weighed = measure_menus(
                    model,
                    family,
                    anatomy,
                    task,
                    weighed,
                    evidence,
                    job.images.batches,
                    partial(job.images.say, "probe"),
                )
        return Scored(menus=weighed.menus, dense=model, scores=weighed.scores, evidence=evidence)

    def plan(self, job: Job, prepared: Scored, target: Target | None = None) -> Plan:
        """The solver's sizes, and in every group the units of highest score."""
        with job.timed("plan"):
            sizes = decide(job.anatomy, prepared.menus, job.task.demand, target)
            weighed = Weighed(menus=prepared.menus, scores=prepared.scores)
            plan = plan_of(job.anatomy, weighed, sizes)
            rotate = job.task.preset.rotate
            return replace(plan, reductions={"width": "rotate"}) if rotate else plan

    def cut(self, job: Job, prepared: Scored, plan: Plan) -> nn.Module:
        """A copy with these units, repaired from the statistics."""
        return cut_copy(job, prepared.evidence, plan)


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
    scores: dict[Key, Tensor] = {}
    for number, branch in enumerate(anatomy.branches):
        weights = family.weights(model, branch)
        for group in _groups_of(branch, task.groups):
            question = Question(
                group=group,
                owner=branch.id,
                weights=weights,
                sums=evidence.about(branch.id),
                images=evidence.images,
                seed=task.options.seed * 100_003 + number * 7 + ALL_GROUPS.index(group),
                settings=task.preset.settings_for(group),
            )
            value = score(criteria.get(task.preset.criterion_for(group)), question)
            scores[branch.id, group] = value
    if "width" in task.groups:
        scores |= _stream_scores(model, family, anatomy, task, evidence)
    worth = normalised(scores, task.preset.normalise, anatomy)
    menus = [_menu(anatomy, key, value, task.limits) for key, value in worth.items()]
    if "block" in task.groups:
        menus += _block_menus(anatomy, task, evidence, scores)
    return Weighed(menus=menus, scores=scores)


def _menu(anatomy: Anatomy, key: Key, worth: Tensor, limits: Limits) -> Menu:
    owner, group = key
    if group == "branch":
        return drop_menu(owner, group, float(worth), limits)
    if group == "width":
        stream = next(stream for stream in anatomy.streams if stream.id == owner)
        return width_menu(stream, worth, limits)
    return unit_menu(anatomy.branch(owner), group, worth, limits)


def _stream_scores(
    model: nn.Module, family: Family, anatomy: Anatomy, task: Task, evidence: Evidence
) -> dict[Key, Tensor]:
    chosen = criteria.get(task.preset.criterion_for("width"))
    scores: dict[Key, Tensor] = {}
    for number, stream in enumerate(anatomy.streams):
        question = Question(
            group="width",
            owner=stream.id,
            weights=None,
            sums=evidence.about(stream.id),
            images=evidence.images,
            seed=task.options.seed * 100_003 + 70_001 + number,
            stream=stream_weights(model, family, anatomy, stream),
            settings=task.preset.settings_for("width"),
        )
        scores[stream.id, "width"] = score(chosen, question)
    return scores


def _block_menus(
    anatomy: Anatomy, task: Task, evidence: Evidence, scores: dict[Key, Tensor]
) -> list[Menu]:
    chosen = criteria.get(task.preset.criterion_for("block"))
    menus = []
    for block in anatomy.blocks:
        if not block.branches:
            continue
        question = Question(
            group="block",
            owner=block.id,
            weights=None,
            sums=evidence.about(block.id),
            images=evidence.images,
            seed=task.options.seed * 100_003 + 50_021 + block.index,
            settings=task.preset.settings_for("block"),
        )
        value = score(chosen, question)
        scores[block.id, "block"] = value
        menus.append(block_menu(block, float(value), task.limits))
    return menus


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
