"""Prune by scores: a criterion ranks the units of each group, a solver chooses the sizes."""

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from secateur.allocation.candidates import (
    Limits,
    block_candidates,
    drop_candidates,
    kept_units,
    unit_candidates,
    width_candidates,
)
from secateur.allocation.normalise import normalised
from secateur.allocation.target import Target, decide
from secateur.allocation.types import Candidates, Key, Plan, Sizes, Units, shapes_of, widths_of
from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import needs_of
from secateur.data.split import fit_and_held
from secateur.methods.cutting import cut_copy
from secateur.methods.measured import measured_candidates, wants_measuring
from secateur.methods.method import Job, Prepared
from secateur.methods.scored import ScoredUnits
from secateur.methods.task import Task
from secateur.models.host import Host
from secateur.models.types import Anatomy, Branch, GroupName
from secateur.statistics import Statistics
from secateur.surgery.cut import repair_needs

UNIT_GROUPS: tuple[GroupName, ...] = ("heads", "qk", "vo", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Prepared):
    """Candidates with the unit scores behind them, and the statistics that repairs rest on."""

    scores: dict[Key, Tensor]
    statistics: Statistics


class ByScore:
    """Score units from one pass over the images, choose sizes, select units, repair writers."""

    def needs(self, task: Task) -> set[str]:
        """The statistics that the task's criteria and repair ask for."""
        preset = task.preset
        return criteria_needs(task) | repair_needs(
            preset.repair, set(task.groups), preset.replacement, rotated=preset.rotate
        )

    def prepare(self, job: Job) -> Scored:
        """Score every unit; measure candidates on the output where the preset says so."""
        model, task, images = job.model, job.task, job.images
        measured, needs = wants_measuring(task), self.needs(task)
        fit, held = fit_and_held(images.batches) if measured else (None, None)
        statistics = images.observe(model, needs, fit)
        scored = self._weighed(job, statistics)
        if held is not None:
            with job.timed("probe"):
                candidates = measured_candidates(
                    job,
                    task,
                    scored,
                    statistics,
                    held,
                    partial(images.say, "probe"),
                    images.loss,
                )
            # WHY: only measurements need images that are held out; units and repair rest on all.
            statistics = statistics.plus(images.observe(model, needs, held))
            scored = replace(self._weighed(job, statistics), candidates=candidates)
        return Scored(
            candidates=scored.candidates, dense=model, scores=scored.scores, statistics=statistics
        )

    def _weighed(self, job: Job, statistics: Statistics) -> ScoredUnits:
        with job.timed("weigh"):
            return score_units(job, job.task, statistics)

    def plan(self, job: Job, prepared: Scored, target: Target | None = None) -> Plan:
        """The solver's sizes, and in every group the units of highest score."""
        with job.timed("plan"):
            sizes = decide(job.anatomy, prepared.candidates, job.task.demand, target)
            scored = ScoredUnits(candidates=prepared.candidates, scores=prepared.scores)
            plan = plan_of(job.anatomy, scored, sizes)
            rotate = job.task.preset.rotate
            return replace(plan, reductions={"width": "rotate"}) if rotate else plan

    def cut(self, job: Job, prepared: Scored, plan: Plan) -> nn.Module:
        """A copy with these units, repaired from the statistics."""
        return cut_copy(job, prepared.statistics, plan)


def criteria_needs(task: Task) -> set[str]:
    """The kinds of statistics that the task's criteria ask for; UserError if one cannot score."""
    needs: set[str] = set()
    for group in task.groups:
        which = criteria.get(task.preset.criterion_for(group))
        needs.update(needs_of(which, group, task.preset.settings_for(group)))
    return needs


def score_units(host: Host, task: Task, statistics: Statistics) -> ScoredUnits:
    """Score every unit, branch and block that may go, and turn the scores into candidates."""
    anatomy = host.anatomy

    def worth_of(group: GroupName, owner: str) -> Tensor:
        which = criteria.get(task.preset.criterion_for(group))
        settings, seed = task.preset.settings_for(group), task.request.seed
        return ask(which, host, group, owner, statistics, seed=seed, settings=settings)

    keys: list[Key] = [(b.id, g) for b in anatomy.branches for g in _groups_of(b, task.groups)]
    if "width" in task.groups:
        keys += [(stream.id, "width") for stream in anatomy.streams]
    scores = {(owner, group): worth_of(group, owner) for owner, group in keys}
    worth = normalised(scores, task.preset.normalise, anatomy)
    candidates = [_candidates(anatomy, key, value, task.limits) for key, value in worth.items()]
    if "block" in task.groups:
        for block in [block for block in anatomy.blocks if block.branches]:
            scores[block.id, "block"] = worth_of("block", block.id)
            candidates.append(
                block_candidates(block, float(scores[block.id, "block"]), task.limits)
            )
    return ScoredUnits(candidates=candidates, scores=scores)


def _candidates(anatomy: Anatomy, key: Key, worth: Tensor, limits: Limits) -> Candidates:
    owner, group = key
    if group == "branch":
        return drop_candidates(owner, group, float(worth), limits)
    if group == "width":
        stream = next(stream for stream in anatomy.streams if stream.id == owner)
        return width_candidates(stream, worth, limits)
    return unit_candidates(anatomy.branch(owner), group, worth, limits)


def plan_of(anatomy: Anatomy, scored: ScoredUnits, sizes: Sizes) -> Plan:
    """The plan in which every group takes its chosen size and keeps its best units."""
    shapes = shapes_of(anatomy, sizes)
    units: dict[str, dict[GroupName, Units]] = {}
    for branch in anatomy.branches:
        if shapes[branch.id] is None:
            continue
        for group in UNIT_GROUPS:
            size = sizes.get((branch.id, group))
            if size is not None and size < branch.shape.size(group):
                kept = kept_units(scored.scores[branch.id, group], size)
                units.setdefault(branch.id, {})[group] = kept
    widths = widths_of(anatomy, sizes)
    for stream in anatomy.streams:
        if (width := widths[stream.id]) < stream.width:
            kept = kept_units(scored.scores[stream.id, "width"], width)
            units[stream.id] = {"width": kept}
    loss = sum(entry.loss(sizes[entry.key]) for entry in scored.candidates)
    return Plan(shapes=shapes, widths=widths, units=units, predicted_loss=loss)


def _groups_of(branch: Branch, groups: tuple[GroupName, ...]) -> list[GroupName]:
    own = [group for group in groups if group in branch.groups]
    return own + (["branch"] if "branch" in groups else [])
