"""The phases of learning masks: dense warm-up, search, projection and removal, fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.allocation.target import Target
from secateur.allocation.types import Plan
from secateur.criteria import criteria
from secateur.masks.bank import GateBank
from secateur.masks.estimator import estimators
from secateur.masks.job import LearnJob
from secateur.masks.masks import masks_of, plan_of_masks
from secateur.masks.projection import project
from secateur.masks.removal.refit import refit_
from secateur.masks.removal.remove import remove
from secateur.masks.removal.summary import Compression, compression
from secateur.masks.removal.takeover import Takeover
from secateur.masks.settings import Phase
from secateur.masks.start.axes import axes_needs, turn_attention_
from secateur.masks.start.by_criterion import start_needs, starting_worths
from secateur.masks.start.from_plans import SPECTRAL, spectral_needs, spectral_worths
from secateur.masks.strategy import SearchStrategy, strategies
from secateur.masks.task import NO_CRITERION, pricing_of
from secateur.measurement.within import require_within
from secateur.methods.to_latency import LatencyCut, cut_to_latency
from secateur.models.caches import copy_of
from secateur.progress import timed
from secateur.training import checkpoint
from secateur.training.distillation.objectives import Distil, supervised
from secateur.training.distillation.teacher import Teacher, teacher_for
from secateur.training.identity import digest
from secateur.training.lesson import Hook, Objective
from secateur.training.machine import processes, training_device

AXES = "axes"
"""The folder in that of a run that keeps the turned weights."""


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


def run(job: LearnJob) -> tuple[nn.Module, Shrunk]:
    """The dense model as it was after warm-up, and the smaller one."""
    home = next(job.model.parameters()).device
    # WHY: times count on the device where the model was when its layers were timed.
    device = training_device(home, job.session.device) if job.target is None else home
    dense = copy_of(job.model).to(device)
    _phase(job, "warmup", dense, supervised(job.task.settings.label_smoothing), None)
    student = copy_of(dense)
    teaches = dense if job.reference is None else job.reference.to(device)
    teacher = teacher_for(student, teaches)
    with timed(job.seconds, "start"):
        turn_(job, student)
        bank = start_gates(job, student)
    way = _search(job, student, teacher, bank)
    with timed(job.seconds, "cut"):
        shrunk = shrink(job, dense, student, way)
    task = job.task.task
    require_within(shrunk.model, job.anatomy, task.budget, task.request.goal)
    smaller = shrunk.model.requires_grad_(True)
    _phase(job, "tune", smaller, _distil(job, teacher_for(smaller, teaches)), teacher)
    return dense.to(home), replace(shrunk, model=smaller.to(home).eval())


def turn_(job: LearnJob, student: nn.Module) -> None:
    """Turn the dims of attention into principal axes, if the settings say so; outputs stay."""
    if job.task.settings.axes == "given":
        return
    session = job.session.stage(AXES)
    folder = session.folder
    mark = digest(student)
    known = None if folder is None or session.restart else checkpoint.read(folder)
    if known is not None and known["of"] == mark:
        # WHY: another machine rounds otherwise, and a run goes on only from the weights it had.
        student.load_state_dict(known["weights"])
        return
    gates = job.task.gates
    statistics = job.observe(student, axes_needs(gates))
    turn_attention_(job.with_model(student), gates, statistics)
    if folder is not None and processes().is_main_process:
        checkpoint.write(folder, {"of": mark, "weights": checkpoint.copy_of(student)})


def start_gates(job: LearnJob, model: nn.Module) -> GateBank:
    """Gates whose scores start in the order of the criterion."""
    gates = job.task.gates
    return GateBank(gates, estimators.get(job.task.request.gates), _worths(job, model))


def _worths(job: LearnJob, model: nn.Module) -> dict[str, Tensor]:
    """What units are worth (R, U) before anything is learned, by gate."""
    task, gates, host = job.task, job.task.gates, job.with_model(model)
    if task.request.criterion == NO_CRITERION:
        return {gate.name: torch.zeros(gate.rows, gate.units) for gate in gates}
    pricing = pricing_of(task, job.anatomy, job.target)
    if task.request.criterion == SPECTRAL:
        statistics = job.observe(model, spectral_needs(gates))
        batches, progress = job.batches(model), job.session.progress
        return spectral_worths(host, gates, pricing, statistics, batches, progress)
    which, seed = criteria.get(task.request.criterion), task.settings.seed
    statistics = job.observe(model, start_needs(which, gates))
    return starting_worths(host, gates, pricing, statistics, which, seed)


def _search(job: LearnJob, student: nn.Module, teacher: Teacher, bank: GateBank) -> SearchStrategy:
    """Let masks and weights learn; without a search phase the scores stay those at the start."""
    pricing = pricing_of(job.task, job.anatomy, job.target)
    settings = job.task.settings
    way = strategies.get(settings.search).make(bank, pricing, settings.way())
    if settings.takeover:
        way.takeover = Takeover(
            job.with_model(student),
            job.task.gates,
            lambda needs: job.observe_in_training(student, needs),
        )
    objective = _distil(job, teacher)
    with bank.attached(student):
        _phase(job, "search", student.requires_grad_(True), objective, None, hooks=[way])
    bank.cpu()
    return way


def shrink(job: LearnJob, dense: nn.Module, student: nn.Module, way: SearchStrategy) -> Shrunk:
    """Project the scores onto the budget and remove what is masked."""
    bank, limits, margins = way.bank, job.task.task.limits, way.margins()
    masks = bank.masks()
    plan = plan_of_masks(job.anatomy, masks, limits)
    searched = compression(job.anatomy, masks, plan)

    def kept_for(target: Target | None) -> dict[str, Tensor]:
        return project(bank.gates, margins, pricing_of(job.task, job.anatomy, target))

    def taken_over(last: Mapping[str, Tensor]) -> Shrunk:
        with bank.attached(student):
            way.close(last)
        masks = masks_of(bank.gates, last)
        smaller, plan = remove(student, masks, limits)
        if job.task.settings.refit:
            seed = job.task.settings.seed
            refit_(smaller, dense, plan, job.batches(dense), seed)
        kept = compression(job.anatomy, masks, plan)
        _finish_(job, smaller)
        return Shrunk(model=smaller, plan=plan, searched=searched, kept=kept)

    if job.target is None:
        return taken_over(kept_for(None))
    tried: list[tuple[Plan, dict[str, Tensor]]] = []

    def plan_for(target: Target) -> Plan:
        kept = kept_for(target)
        plan = plan_of_masks(job.anatomy, masks_of(bank.gates, kept), limits)
        tried.append((plan, kept))
        return plan

    def kept_of(plan: Plan) -> dict[str, Tensor]:
        return next(kept for known, kept in tried if known is plan)

    # Models are timed as masked: what stays takes over once only, in the one that is chosen.
    found = cut_to_latency(
        job.with_model(dense),
        job.task.task,
        job.target,
        plan_for,
        lambda plan: _finish_(job, remove(student, masks_of(bank.gates, kept_of(plan)), limits)[0]),
    )
    return replace(taken_over(kept_of(found.plan)), timed=found)


def _finish_(job: LearnJob, smaller: nn.Module) -> nn.Module:
    """Give a smaller model the exact tail, if the task wants it."""
    if job.task.task.exact_tail:
        job.family.put_tail_(smaller)
    return smaller


def _distil(job: LearnJob, teacher: Teacher) -> Distil:
    """What a student learns from the teacher; from it alone where there are no labels."""
    settings = job.task.settings
    distil = settings.distil
    if not job.session.labels:
        weight = distil.logit_weight or 1.0
        distil = distil.model_copy(update={"label_weight": 0.0, "logit_weight": weight})
    return job.session.distillation(teacher, distil, settings)


def _phase(
    job: LearnJob,
    phase: Phase,
    model: nn.Module,
    objective: Objective,
    teacher: Teacher | None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train for one phase, if the run has it; the search has no choice among its states."""
    settings, session = job.phases.get(phase), job.session.stage(phase)
    if settings is None:
        return
    judge, by_labels = None, session.judged_by_labels
    if phase != "search" and (by_labels or teacher is not None):
        judge = session.judge(settings, None if by_labels else teacher)
    about = {**job.task.about(), "phase": phase}
    if session.judge_labels is not None:
        about["judge"] = "eval_data"
    if teacher is not None:
        about["teacher"] = digest(teacher.model)
    with timed(job.seconds, phase):
        job.reports[phase] = session.fit_(
            model, objective, settings, judge=judge, hooks=hooks, about=about
        )
