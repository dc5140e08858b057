"""The phases of learning masks: dense warm-up, search, projection and removal, fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.allocation.target import Target
from secateur.allocation.types import Plan
from secateur.criteria import criteria
from secateur.data.batches import Batches, as_batches
from secateur.data.images import ImageSet
from secateur.masks.axes import axes_needs, turn_attention_
from secateur.masks.bank import GateBank
from secateur.masks.estimator import forms
from secateur.masks.masks import masks_of, plan_of_masks
from secateur.masks.projection import project
from secateur.masks.refit import refit_
from secateur.masks.removal import remove
from secateur.masks.schedule import Phase
from secateur.masks.start_from_plans import SPECTRAL, spectral_needs, spectral_worths
from secateur.masks.starting import start_needs, starting_worths
from secateur.masks.strategy import Way, ways
from secateur.masks.summary import Compression, compression
from secateur.masks.takeover import Takeover
from secateur.masks.task import NO_CRITERION, LearnTask, pricing_of
from secateur.measurement.modes import evaluating
from secateur.measurement.within import require_within
from secateur.methods.to_latency import LatencyCut, cut_to_latency
from secateur.models.caches import copy_of
from secateur.models.family import Family
from secateur.models.types import Anatomy
from secateur.progress import Progress, timed
from secateur.statistics import Evidence, observe
from secateur.training import checkpoint
from secateur.training.answers import answers_for
from secateur.training.held_out import HeldOut, part_of
from secateur.training.identity import digest
from secateur.training.lesson import Hook, Objective
from secateur.training.loop import FitReport, fit_
from secateur.training.machine import training_device
from secateur.training.objectives import Distil, supervised
from secateur.training.run import OnLog
from secateur.training.settings import AugmentSettings, TrainSettings
from secateur.training.stream import Items, items_of
from secateur.training.teacher import Teacher, teacher_for

AXES = "axes"
"""The folder in that of a run that keeps the turned weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """All that a run needs beside its model; `reports` and `seconds` fill up on the way.

    `train` and `held` are images to train on and to choose weights by, with `labels` or without;
    `reference` teaches, or the dense model itself; `target` is that of a budget in milliseconds.
    """

    task: LearnTask
    family: Family
    anatomy: Anatomy
    train: object
    held: object | None
    labels: bool
    phases: dict[Phase, TrainSettings]
    reference: nn.Module | None = None
    target: Target | None = None
    folder: Path | None = None
    restart: bool = False
    device: torch.device | str | None = None
    progress: Progress | None = None
    on_log: OnLog | None = None
    reports: dict[Phase, FitReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """A smaller model, its plan, and what its masks claim; `timed` for budgets in ms.

    `searched` is what the masks of the search itself would have given, without the projection.
    """

    model: nn.Module
    plan: Plan
    searched: Compression
    kept: Compression
    timed: LatencyCut | None = None


def run(course: Course, model: nn.Module) -> tuple[nn.Module, Shrunk]:
    """The dense model as it was after warm-up, and the smaller one; `model` stays as it is."""
    home = next(model.parameters()).device
    # WHY: times count on the device where the model was when its layers were timed.
    device = training_device(home, course.device) if course.target is None else home
    dense = copy_of(model).to(device)
    _phase(course, "warmup", dense, supervised(course.task.options.settings.label_smoothing), None)
    student = copy_of(dense)
    teaches = dense if course.reference is None else course.reference.to(device)
    teacher = teacher_for(student, teaches)
    with timed(course.seconds, "start"):
        turn_(course, student)
        bank = start_gates(course, student)
    way = _search(course, student, teacher, bank)
    with timed(course.seconds, "cut"):
        shrunk = shrink(course, dense, student, way)
    task = course.task.task
    require_within(shrunk.model, course.anatomy, task.budget, task.options.goal)
    smaller = shrunk.model.requires_grad_(True)
    _phase(course, "tune", smaller, _objective(course, smaller, teaches), teacher)
    return dense.to(home), replace(shrunk, model=smaller.to(home).eval())


def turn_(course: Course, student: nn.Module) -> None:
    """Turn the dims of attention into principal axes, if the settings say so; outputs stay."""
    from accelerate import PartialState

    if course.task.options.settings.axes == "given":
        return
    folder = None if course.folder is None else course.folder / AXES
    mark = digest(student)
    known = None if folder is None or course.restart else checkpoint.read(folder)
    if known is not None and known["of"] == mark:
        # WHY: another machine rounds otherwise, and a run goes on only from the weights it had.
        student.load_state_dict(known["weights"])
        return
    gates = course.task.gates
    evidence = _observed_for(course, student, axes_needs(gates))
    turn_attention_(student, course.family, course.anatomy, gates, evidence)
    if folder is not None and PartialState().is_main_process:
        checkpoint.write(folder, {"of": mark, "weights": checkpoint.copy_of(student)})


def start_gates(course: Course, model: nn.Module) -> GateBank:
    """Gates whose scores start in the order of the criterion."""
    gates = course.task.gates
    return GateBank(gates, forms.get(course.task.options.gates), _worths(course, model))


def _worths(course: Course, model: nn.Module) -> dict[str, Tensor]:
    """What units are worth (R, U) before anything is learned, by gate."""
    task, family, gates = course.task, course.family, course.task.gates
    if task.options.criterion == NO_CRITERION:
        return {gate.name: torch.zeros(gate.rows, gate.units) for gate in gates}
    pricing = pricing_of(task, course.anatomy, course.target)
    if task.options.criterion == SPECTRAL:
        evidence = _observed_for(course, model, spectral_needs(gates))
        batches = _observed(course, model)
        return spectral_worths(model, family, gates, pricing, evidence, batches, course.progress)
    which, seed = criteria.get(task.options.criterion), task.options.settings.seed
    evidence = _observed_for(course, model, start_needs(which, gates))
    return starting_worths(model, family, gates, pricing, evidence, which, seed)


def _observed_for(course: Course, model: nn.Module, needs: set[str]) -> Evidence:
    """Evidence from training images without augmentation, spread over all of them."""
    if not needs:
        return Evidence(images=0, tokens=0)
    batches = _observed(course, model)

    def on_batch(done: int) -> None:
        if course.progress is not None:
            course.progress("observe", done, batches.images)

    return observe(model, batches, needs, on_batch=on_batch)


def _observed_under_gates(course: Course, student: nn.Module, needs: set[str]) -> Evidence:
    """The same in the middle of training: with hard masks and without dropout."""
    with evaluating(student):
        return _observed_for(course, student, needs)


def _observed(course: Course, model: nn.Module) -> Batches:
    """The images that give evidence."""
    items = plain_items(course.train)
    count = min(len(items), course.task.options.settings.observe)
    chosen = part_of(course.train, [i * len(items) // count for i in range(count)])
    return as_batches(chosen, 32, 0, next(model.parameters()).device)


def plain_items(images: object) -> Items:
    """Images as they are evaluated, without augmentation."""
    return images if isinstance(images, ImageSet) else items_of(images, AugmentSettings())


def _search(course: Course, student: nn.Module, teacher: Teacher, bank: GateBank) -> Way:
    """Let masks and weights learn; without a search phase the scores stay those at the start."""
    pricing = pricing_of(course.task, course.anatomy, course.target)
    settings = course.task.options.settings
    way = ways.get(settings.search).make(bank, pricing, settings.way())
    if settings.takeover:
        way.takeover = Takeover(
            student,
            course.family,
            course.anatomy,
            course.task.gates,
            lambda needs: _observed_under_gates(course, student, needs),
        )
    objective = _distil(course, teacher)
    with bank.attached(student):
        _phase(course, "search", student.requires_grad_(True), objective, None, hooks=[way])
    bank.cpu()
    return way


def shrink(course: Course, dense: nn.Module, student: nn.Module, way: Way) -> Shrunk:
    """Project the scores onto the budget and remove what is masked."""
    bank, limits, margins = way.bank, course.task.task.limits, way.margins()
    masks = bank.masks()
    plan = plan_of_masks(course.anatomy, masks, limits)
    searched = compression(course.anatomy, masks, plan)

    def kept_for(target: Target | None) -> dict[str, Tensor]:
        return project(bank.gates, margins, pricing_of(course.task, course.anatomy, target))

    def taken_over(last: Mapping[str, Tensor]) -> Shrunk:
        with bank.attached(student):
            way.close(last)
        masks = masks_of(bank.gates, last)
        smaller, plan = remove(student, masks, limits)
        if course.task.options.settings.refit:
            seed = course.task.options.settings.seed
            refit_(smaller, dense, plan, _observed(course, dense), seed)
        kept = compression(course.anatomy, masks, plan)
        return Shrunk(model=smaller, plan=plan, searched=searched, kept=kept)

    if course.target is None:
        return taken_over(kept_for(None))
    tried: list[tuple[Plan, dict[str, Tensor]]] = []

    def plan_for(target: Target) -> Plan:
        kept = kept_for(target)
        plan = plan_of_masks(course.anatomy, masks_of(bank.gates, kept), limits)
        tried.append((plan, kept))
        return plan

    def kept_of(plan: Plan) -> dict[str, Tensor]:
        return next(kept for known, kept in tried if known is plan)

    # Models are timed as masked: what stays takes over once only, in the one that is chosen.
    found = cut_to_latency(
        dense,
        course.anatomy,
        course.task.task,
        course.target,
        plan_for,
        lambda plan: remove(student, masks_of(bank.gates, kept_of(plan)), limits)[0],
    )
    return replace(taken_over(kept_of(found.plan)), timed=found)


def _objective(course: Course, student: nn.Module, teaches: nn.Module) -> Objective:
    """What the smaller model learns."""
    return _distil(course, teacher_for(student, teaches))


def _distil(course: Course, teacher: Teacher) -> Objective:
    settings = course.task.options.settings
    distil = settings.distil
    if not course.labels:
        weight = distil.logit_weight or 1.0
        distil = distil.model_copy(update={"label_weight": 0.0, "logit_weight": weight})
    classes = course.anatomy.num_classes
    answers = answers_for(teacher, course.train, settings, distil.answers, classes)
    return Distil(teacher, distil, settings.label_smoothing, answers)


def _phase(
    course: Course,
    phase: Phase,
    model: nn.Module,
    objective: Objective,
    teacher: Teacher | None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train for one phase, if the run has it; with a folder, in a folder of its own."""
    settings = course.phases.get(phase)
    if settings is None:
        return
    judge = None
    if course.held is not None and phase != "search":
        judge = HeldOut(
            items=plain_items(course.held),
            labels=course.labels,
            teacher=None if course.labels else teacher,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )

    def progress(_stage: str, done: int, total: int) -> None:
        if course.progress is not None:
            course.progress(phase, done, total)

    about = {**course.task.about(), "phase": phase}
    if teacher is not None:
        about["teacher"] = digest(teacher.model)
    with timed(course.seconds, phase):
        course.reports[phase] = fit_(
            model,
            course.train,
            objective,
            settings,
            classes=course.anatomy.num_classes,
            labelled=course.labels,
            folder=None if course.folder is None else course.folder / phase,
            restart=course.restart,
            hooks=hooks,
            judge=judge,
            about=about,
            device=course.device,
            progress=progress,
            on_log=course.on_log,
        )
