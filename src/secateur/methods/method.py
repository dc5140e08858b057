"""The ways from calibration images to a smaller model: by criteria, by search, and spectral.

Each looks at the images once and gives menus, a function from a target to a plan, and one from
a plan to a smaller copy; latency budgets call these more than once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from secateur.allocation.types import Plan
from secateur.data.batches import Batches
from secateur.data.split import fit_and_held
from secateur.methods.by_score import criteria_needs, plan_of, weigh
from secateur.methods.decide import Target, decide
from secateur.methods.layer_search.search import search, search_needs
from secateur.methods.measured import measure_menus, wants_measuring
from secateur.methods.spectral import cut_spectral_, plan_spectral, prepare
from secateur.methods.task import Task
from secateur.methods.two_stage import Stage, is_staged, staged
from secateur.models.caches import copy_of, shell_of
from secateur.models.family import Family
from secateur.models.types import Anatomy
from secateur.progress import Progress, timed
from secateur.statistics import Evidence, observe
from secateur.statistics.anchors import anchor_moments
from secateur.statistics.gaps import gap_moments
from secateur.surgery.cut import cut_, repair_needs
from secateur.surgery.stand_in import gaps_of, runs_of

Engine = Stage
"""What was learnt from the images, ready to plan and cut; without a target, by the budget."""


def evidence_needs(task: Task) -> set[str]:
    """The kinds of evidence that the task's criteria and repair ask for; UserError if unknown."""
    if task.preset.engine == "spectral":
        return set()
    asked = criteria_needs(task)
    if task.preset.search != "one_shot":
        asked = search_needs(task)
    preset = task.preset
    return asked | repair_needs(
        preset.repair, set(task.groups), preset.stand_in, rotated=preset.rotate
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model with all that pruning it needs; stages add the time they take to `seconds`."""

    model: nn.Module
    family: Family
    anatomy: Anatomy
    task: Task
    batches: Batches
    seconds: dict[str, float]
    progress: Progress | None

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time spent inside to that of a stage."""
        return timed(self.seconds, stage)

    def observe(self, needs: set[str]) -> Evidence:
        """One pass over the images, none where nothing is needed."""
        if not needs:
            return Evidence(images=0, tokens=0)
        images = self.batches.images
        with self.timed("observe"):
            return observe(
                self.model,
                self.batches,
                needs,
                on_batch=lambda done: self.say("observe", done, images),
            )

    def say(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, done, total)


def start(job: Job) -> Engine:
    """The engine of the task's preset, after its pass over the images."""
    if is_staged(job.task):

        def begin(through: nn.Module, seen: Anatomy, part: Task) -> Stage:
            return _by_criteria(replace(job, model=through, anatomy=seen, task=part))

        return staged(job.model, job.family, job.anatomy, job.task, begin)
    if job.task.preset.search != "one_shot":
        return _by_search(job)
    return _spectral(job) if job.task.preset.engine == "spectral" else _by_criteria(job)


def _spectral(job: Job) -> Engine:
    model, anatomy, task, batches = job.model, job.anatomy, job.task, job.batches
    with job.timed("weigh"):
        prepared = prepare(model, job.family, anatomy, task, batches, job.progress)

    def plan_for(target: Target | None) -> Plan:
        with job.timed("plan"):
            return plan_spectral(anatomy, task, prepared.menus, target)

    affine = task.preset.stand_in == "affine"

    def cut(plan: Plan) -> nn.Module:
        smaller = shell_of(model)
        with job.timed("cut"):
            cut_spectral_(
                smaller, model, anatomy, plan, prepared, batches, job.progress, stand_in=affine
            )
        return smaller

    return Engine(menus=prepared.menus, plan_for=plan_for, cut=cut)


def _by_criteria(job: Job) -> Engine:
    model, family, anatomy, task = job.model, job.family, job.anatomy, job.task
    needs, batches = evidence_needs(task), job.batches
    fit, held = fit_and_held(batches) if wants_measuring(task) else (batches, None)
    evidence = replace(job, batches=fit).observe(needs)
    with job.timed("weigh"):
        weighed = weigh(model, family, anatomy, task, evidence)
    if held is not None:
        with job.timed("probe"):
            menus = measure_menus(
                model,
                family,
                anatomy,
                task,
                weighed,
                evidence,
                held,
                partial(job.say, "probe"),
            )
        # WHY: only measurements need images that are held out; units and repair rest on all.
        evidence = evidence.plus(replace(job, batches=held).observe(needs))
        with job.timed("weigh"):
            weighed = replace(weigh(model, family, anatomy, task, evidence), menus=menus)

    def plan_for(target: Target | None) -> Plan:
        with job.timed("plan"):
            plan = plan_of(anatomy, weighed, decide(anatomy, weighed.menus, task, target))
            return replace(plan, reductions={"width": "rotate"}) if task.preset.rotate else plan

    return Engine(menus=weighed.menus, plan_for=plan_for, cut=_cutter(job, evidence))


def _by_search(job: Job) -> Engine:
    evidence = job.observe(evidence_needs(job.task))
    searched = search(
        job.model, job.family, job.anatomy, job.task, job.batches, evidence, job.progress
    )

    def plan_for(target: Target | None) -> Plan:
        with job.timed("search"):
            return searched.plan_for(target)

    return Engine(menus=searched.menus, plan_for=plan_for, cut=_cutter(job, evidence))


def _cutter(job: Job, evidence: Evidence) -> Callable[[Plan], nn.Module]:
    """From a plan to a cut copy, with the preset's repair and stand-in."""
    preset = job.task.preset

    def cut(plan: Plan) -> nn.Module:
        smaller = copy_of(job.model)
        with job.timed("cut"):
            anchors = {}
            if preset.stand_in == "affine":
                spans = runs_of(job.anatomy, plan.shapes)
                anchors = anchor_moments(job.model, job.batches, spans)
            elif preset.stand_in == "linear":
                spans = gaps_of(job.anatomy, plan.shapes)
                anchors = gap_moments(job.model, job.batches, spans)
            cut_(smaller, plan, evidence, preset.repair, preset.stand_in, anchors)
        return smaller

    return cut
