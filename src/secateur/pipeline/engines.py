"""The ways from calibration images to a smaller model: by criteria, by search, and spectral.

Each looks at the images once and gives menus, a function from a target to a plan, and one from
a plan to a smaller copy; latency budgets call these more than once.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from secateur.anatomy.caches import copy_of
from secateur.anatomy.family import Family
from secateur.anatomy.types import Anatomy
from secateur.data.batches import Batches
from secateur.evidence import Evidence, observe
from secateur.evidence.anchors import anchor_moments
from secateur.evidence.gaps import gap_moments
from secateur.pipeline.decide import Target, decide
from secateur.pipeline.depth import search, search_needs
from secateur.pipeline.measure import Progress
from secateur.pipeline.measured import measure_menus, wants_measuring
from secateur.pipeline.options import Task
from secateur.pipeline.spectral import cut_spectral_, plan_spectral, prepare
from secateur.pipeline.staged import Stage, is_staged, staged
from secateur.pipeline.weigh import criteria_needs, plan_of, weigh
from secateur.planning.types import Plan
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


def start(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    seconds: dict[str, float],
    progress: Progress | None,
) -> Engine:
    """The engine of the task's preset, after its pass over the images; adds to `seconds`."""
    if is_staged(task):

        def begin(through: nn.Module, seen: Anatomy, part: Task) -> Stage:
            return _by_criteria(through, family, seen, part, batches, seconds, progress)

        return staged(model, family, anatomy, task, begin)
    engine = _spectral if task.preset.engine == "spectral" else _by_criteria
    if task.preset.search != "one_shot":
        engine = _by_search
    return engine(model, family, anatomy, task, batches, seconds, progress)


def _spectral(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    seconds: dict[str, float],
    progress: Progress | None,
) -> Engine:
    with timed(seconds, "weigh"):
        prepared = prepare(model, family, anatomy, task, batches, progress)

    def plan_for(target: Target | None) -> Plan:
        with timed(seconds, "plan"):
            return plan_spectral(anatomy, task, prepared.menus, target)

    affine = task.preset.stand_in == "affine"

    def cut(plan: Plan) -> nn.Module:
        smaller = copy_of(model)
        with timed(seconds, "cut"):
            cut_spectral_(
                smaller, model, anatomy, plan, prepared, batches, progress, stand_in=affine
            )
        return smaller

    return Engine(menus=prepared.menus, plan_for=plan_for, cut=cut)


def _by_criteria(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    seconds: dict[str, float],
    progress: Progress | None,
) -> Engine:
    with timed(seconds, "observe"):
        evidence = _observe(model, batches, evidence_needs(task), progress)
    with timed(seconds, "weigh"):
        weighed = weigh(model, family, anatomy, task, evidence)
    if wants_measuring(task):

        def probed(done: int, total: int) -> None:
            if progress is not None:
                progress("probe", done, total)

        with timed(seconds, "probe"):
            weighed = measure_menus(
                model, family, anatomy, task, weighed, evidence, batches, probed
            )

    def plan_for(target: Target | None) -> Plan:
        with timed(seconds, "plan"):
            plan = plan_of(anatomy, weighed, decide(anatomy, weighed.menus, task, target))
            return replace(plan, reductions={"width": "rotate"}) if task.preset.rotate else plan

    cut = _cutter(model, anatomy, task, batches, evidence, seconds)
    return Engine(menus=weighed.menus, plan_for=plan_for, cut=cut)


def _by_search(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    seconds: dict[str, float],
    progress: Progress | None,
) -> Engine:
    with timed(seconds, "observe"):
        evidence = _observe(model, batches, evidence_needs(task), progress)
    searched = search(model, family, anatomy, task, batches, evidence, progress)

    def plan_for(target: Target | None) -> Plan:
        with timed(seconds, "search"):
            return searched.plan_for(target)

    cut = _cutter(model, anatomy, task, batches, evidence, seconds)
    return Engine(menus=searched.menus, plan_for=plan_for, cut=cut)


def _cutter(
    model: nn.Module,
    anatomy: Anatomy,
    task: Task,
    batches: Batches,
    evidence: Evidence,
    seconds: dict[str, float],
) -> Callable[[Plan], nn.Module]:
    """From a plan to a cut copy, with the preset's repair and stand-in."""

    def cut(plan: Plan) -> nn.Module:
        smaller = copy_of(model)
        with timed(seconds, "cut"):
            anchors = {}
            if task.preset.stand_in == "affine":
                anchors = anchor_moments(model, batches, runs_of(anatomy, plan.shapes))
            elif task.preset.stand_in == "linear":
                anchors = gap_moments(model, batches, gaps_of(anatomy, plan.shapes))
            cut_(smaller, plan, evidence, task.preset.repair, task.preset.stand_in, anchors)
        return smaller

    return cut


def _observe(
    model: nn.Module, batches: Batches, needs: set[str], progress: Progress | None
) -> Evidence:
    if not needs:
        return Evidence(images=0, tokens=0)

    def on_batch(done: int) -> None:
        if progress is not None:
            progress("observe", done, batches.images)

    return observe(model, batches, needs, on_batch=on_batch)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time spent inside to that of a stage."""
    begin = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
