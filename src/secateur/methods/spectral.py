"""The spectral method: weigh tokens, measure candidates, plan, cut front to back.

Legend: N tokens, P probe images.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.ablation.candidates import FULL, QUICK, Effort, Probe, measure_candidates
from secateur.ablation.candidates import Probed as Measured
from secateur.ablation.probe_runner import ProbeRunner
from secateur.ablation.refitted import Refitted, refit_needs
from secateur.allocation.budget import ShapeBudget, SizesBudget
from secateur.allocation.candidates import Limits
from secateur.allocation.knapsack import solve_knapsack
from secateur.allocation.solvers import cost_function
from secateur.allocation.target import Target, cost_limit, decide, unweighed
from secateur.allocation.types import Candidates, Plan, Sizes, shapes_of
from secateur.data.batches import Batches
from secateur.data.split import HOLD_EVERY, all_images, first_batches, first_images, fit_and_held
from secateur.errors import UserError
from secateur.measurement.memory import return_freed_memory
from secateur.methods.images import Images
from secateur.methods.method import Job, Prepared
from secateur.methods.task import Task
from secateur.models.caches import shell_of
from secateur.models.host import Host
from secateur.models.types import Anatomy, Branch, GroupName
from secateur.progress import Progress
from secateur.statistics import Statistics, observe
from secateur.statistics.divergence import LossName
from secateur.surgery.sequential import SequentialSettings, cut_front_to_back_

SENSE_IMAGES = 64
"""Images of the backward pass that weighs tokens."""
SOFTEN = 0.5
"""Power of the mean squared gradient that weighs a token: 1 would trust it fully, but then a
class token leaves too few samples for a solve."""
LEAST_WEIGHT = 0.05
"""Least weight of a token, before normalisation, so that no solve runs out of samples."""
COMPOUND = 2.0
"""Power of the degradations that the knapsack adds up. Degradation done to one group alone
saturates, and many small ones at once compound; squares spread them. Chosen on calibration images.
"""
STREAM_BYTES = 1_500_000_000
"""Memory for the streams of a sequential cut; more images than fit are left out of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(Prepared):
    """Token weights by branch, and the probes behind the candidates."""

    token_weights: dict[str, Tensor]
    probes: list[Probe]


class Spectral:
    """Weigh tokens, measure candidates on held-out images, plan, cut front to back with refits."""

    def needs(self, task: Task) -> set[str]:
        """Nothing before the tokens are weighed."""
        return set()

    def prepare(self, job: Job) -> Probed:
        """Weigh tokens and, where a choice depends on losses, measure candidates."""
        with job.timed("weigh"):
            return prepare(job)

    def plan(self, job: Job, prepared: Probed, target: Target | None = None) -> Plan:
        """One size per group; queries, keys and values are rotated, not selected."""
        with job.timed("plan"):
            return plan_spectral(job.anatomy, job.task, prepared.candidates, target)

    def cut(self, job: Job, prepared: Probed, plan: Plan) -> nn.Module:
        """Reduce branch after branch, each refitted to the dense stream."""
        smaller = shell_of(job.model)
        with job.timed("cut"):
            cut_spectral_(
                smaller,
                job,
                plan,
                prepared,
                job.images.batches,
                job.images.progress,
                affine=job.task.preset.replacement == "affine",
            )
        return smaller


def prepare(job: Job) -> Probed:
    """Weigh tokens by a backward pass and, where a choice depends on losses, measure candidates."""
    anatomy, task, batches = job.anatomy, job.task, job.images.batches
    plain = plain_candidates(anatomy, task)
    if _sizes_need_no_losses(anatomy, task, plain):
        _require_images(anatomy, task.groups, batches)
        weights = token_weights(job, batches, task.request.seed, job.images.loss)
        return Probed(candidates=plain, dense=job.model, token_weights=weights, probes=[])
    effort: Effort = FULL if task.request.effort == "full" else QUICK
    seed, limits = task.request.seed, task.limits
    return measured_candidates(job, task.groups, limits, job.images, seed=seed, effort=effort)


def measured_candidates(
    host: Host,
    groups: tuple[GroupName, ...],
    limits: Limits,
    images: Images,
    *,
    seed: int = 0,
    effort: Effort = FULL,
) -> Probed:
    """Weigh tokens and measure a candidate list for each of the groups of each branch."""
    model, batches = host.model, images.batches
    _require_images(host.anatomy, groups, batches)
    weights = token_weights(host, batches, seed, images.loss)
    fit, held = fit_and_held(batches)

    def seen(done: int) -> None:
        images.say("observe", done, fit.images)

    statistics = observe(model, fit, refit_needs(groups), token_weights=weights, on_batch=seen)
    probed = _probe(host, groups, limits, held, statistics, effort, images)
    return Probed(
        candidates=probed.candidates, dense=model, token_weights=weights, probes=probed.probes
    )


def plan_spectral(
    anatomy: Anatomy, task: Task, candidates: list[Candidates], target: Target | None = None
) -> Plan:
    """One size per group within the budget; queries, keys and values are rotated."""
    scored = compounded(candidates) if task.preset.allocation == "knapsack" else candidates
    return _plan(anatomy, candidates, decide(anatomy, scored, task.demand, target))


def plan_within(anatomy: Anatomy, candidates: list[Candidates], target: Target) -> Plan:
    """The plan of least compounded loss within a target; OutOfReach where there is none."""
    sizes = solve_knapsack(anatomy, compounded(candidates), target.cost_of, target.limit)
    return _plan(anatomy, candidates, sizes)


def _plan(anatomy: Anatomy, candidates: list[Candidates], sizes: Sizes) -> Plan:
    return Plan(
        shapes=shapes_of(anatomy, sizes),
        reductions={"qk": "rotate", "vo": "rotate"},
        predicted_loss=sum(entry.loss(sizes[entry.key]) for entry in candidates),
    )


def compounded(candidates: list[Candidates]) -> list[Candidates]:
    """The candidates as the knapsack should add them up."""
    return [replace(m, losses=tuple(loss**COMPOUND for loss in m.losses)) for m in candidates]


def cut_spectral_(
    smaller: nn.Module,
    dense: Host,
    plan: Plan,
    prepared: Probed,
    batches: Batches,
    progress: Progress | None = None,
    *,
    affine: bool = False,
) -> None:
    """Cut `smaller`, a copy or shell of `dense`, front to back to the plan's shapes."""

    def cut_so_far(done: int, total: int) -> None:
        return_freed_memory()
        if progress is not None:
            progress("cut", done, total)

    cut_front_to_back_(
        smaller,
        dense.model,
        plan.shapes,
        batches_to_stream(dense.anatomy, batches),
        SequentialSettings(token_weights=prepared.token_weights, affine=affine),
        cut_so_far,
    )


def batches_to_stream(anatomy: Anatomy, batches: Batches) -> Batches:
    """As many of the batches as have room when the streams of two models are kept."""
    floats = max((b.tokens * b.width for b in anatomy.branches), default=1)
    return first_batches(batches, max(HOLD_EVERY, STREAM_BYTES // (3 * 4 * floats)))


def token_weights(
    host: Host, batches: Batches, seed: int, loss: LossName | None = None
) -> dict[str, Tensor]:
    """How much each token of each branch counts in moments: (N,), mean 1."""
    found = sensitivities(host, batches, seed, loss)
    return {branch_id: softened(square_N, SOFTEN) for branch_id, square_N in found.items()}


def sensitivities(
    host: Host, batches: Batches, seed: int, loss: LossName | None = None
) -> dict[str, Tensor]:
    """Mean squared gradient of the loss at each token of each branch (N,), by one backward pass.

    Labels are drawn from the model's own distribution. Positions after the prefix tokens share
    their mean, since single patches differ by chance.
    """
    some = first_batches(batches, SENSE_IMAGES)
    statistics = observe(host.model, some, {"sensitivity"}, sample_labels=seed, loss=loss)
    # WHY: matrices of a few MB leave a heap full of holes, which the next stage would add to.
    return_freed_memory()
    squares = {}
    for branch in host.anatomy.branches:
        square_N = statistics.of("sensitivity", branch.id)["token_square"].clone()
        patches_N = square_N[host.anatomy.prefix_tokens :]
        patches_N[:] = patches_N.mean()
        squares[branch.id] = square_N
    return squares


def softened(square_N: Tensor, power: float) -> Tensor:
    """Weights from squared gradients: a power of them, none below the least, mean 1."""
    mean = square_N.mean()
    if float(mean) <= 0:
        return torch.ones_like(square_N)
    soft_N = (square_N / mean).pow(power).clamp(min=LEAST_WEIGHT)
    return soft_N / soft_N.mean()


def _probe(
    host: Host,
    groups: tuple[GroupName, ...],
    limits: Limits,
    held: Batches,
    statistics: Statistics,
    effort: Effort,
    images: Images,
) -> Measured:
    images_PCHW = all_images(first_images(held, effort.images))
    probe = ProbeRunner.of(host, images_PCHW, loss=images.loss)

    def probed_so_far(done: int, total: int) -> None:
        return_freed_memory()
        images.say("probe", done, total)

    reducer = Refitted(statistics, limits)
    return measure_candidates(probe, reducer, groups, limits, effort.shares, probed_so_far)


def _sizes_need_no_losses(anatomy: Anatomy, task: Task, plain: list[Candidates]) -> bool:
    """Whether the sizes follow from the budget alone: shares, or a uniform share in reach."""
    if isinstance(task.budget, SizesBudget):
        return True
    if isinstance(task.budget, ShapeBudget):
        return not task.budget.drops
    if task.preset.allocation != "uniform" or task.budget.unit == "ms":
        return False
    least = cost_function(anatomy, task.budget.unit)({entry.key: entry.sizes[0] for entry in plain})
    return least <= cost_limit(anatomy, task.budget)


def plain_candidates(anatomy: Anatomy, task: Task) -> list[Candidates]:
    """Candidates without losses, for budgets that fix every size."""
    whole = ("branch", "block")
    return [entry for entry in unweighed(anatomy, task.demand) if entry.group not in whole]


def _require_images(anatomy: Anatomy, groups: tuple[GroupName, ...], batches: Batches) -> None:
    """Refuse fewer images than make a solve determined."""

    def images_for(branch: Branch) -> int:
        return -(-_solved_units(branch, groups) // branch.tokens)

    hardest = max(anatomy.branches, key=images_for, default=None)
    needed = 2 if hardest is None else max(2, images_for(hardest))
    if hardest is not None and batches.images < needed:
        units, tokens = _solved_units(hardest, groups), hardest.tokens
        raise UserError(
            f"{batches.images} calibration images are too few: the largest solve has {units} "
            f"unknowns per output, so at least {needed} images of {tokens} tokens are "
            f"needed, and {10 * needed} are better; give more with --data or --limit."
        )


def _solved_units(branch: Branch, groups: tuple[GroupName, ...]) -> int:
    if branch.kind == "mlp":
        return branch.shape.size("hidden") if "hidden" in groups else 0
    if not {"vo", "heads"} & set(groups):
        return 0
    return branch.shape.size("heads") * branch.shape.size("vo")
