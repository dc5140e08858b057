"""Menus for criteria measured on the model's output: units by score, losses by divergence.

Scores order the units of one layer; those of different layers and kinds have no common scale. So
each group is cut to two sizes, its units chosen by score and repaired as the preset says, the
divergence KL(dense || changed) is measured, and carried to the other sizes along the summed scores.
Legend: P probe images, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.ablation.bench import Bench
from secateur.ablation.probe import QUICK, mean_update
from secateur.allocation.budget import CostBudget
from secateur.allocation.curves import menu_from_probes
from secateur.allocation.menus import block_menu, drop_menu, kept_units, unit_menu, width_menu
from secateur.allocation.types import Key, Menu, Plan
from secateur.data.batches import Batches
from secateur.methods.scored import Weighed
from secateur.methods.task import Task
from secateur.models.caches import copy_of
from secateur.models.family import Family
from secateur.models.types import Anatomy, Branch, GroupName
from secateur.models.weights import BranchWeights
from secateur.statistics import Evidence
from secateur.surgery.cut import moments_of, narrow_streams_
from secateur.surgery.select import select

Seen = Callable[[int, int], None]


def wants_measuring(task: Task) -> bool:
    """Whether the preset measures its menus, and the sizes depend on them.

    Scores of whole layers, or of whole blocks, are on one scale as they are.
    """
    by_losses = isinstance(task.budget, CostBudget) and task.preset.allocation != "uniform"
    alike = task.groups in (("branch",), ("block",))
    return task.preset.menus == "measured" and by_losses and not alike


@torch.no_grad()
def measure_menus(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    task: Task,
    weighed: Weighed,
    evidence: Evidence,
    batches: Batches,
    on_branch: Seen | None = None,
) -> Weighed:
    """The same scores with menus in nats, measured branch by branch on the first images."""
    images_PCHW = _some_images(batches)
    run = _Run(model, family, anatomy, task, weighed, evidence, images_PCHW)
    bench = Bench.of(model, family, anatomy, images_PCHW)
    menus = _stream_menus(run, bench)
    start_PND = bench.stream_PND
    for number, branch in enumerate(anatomy.branches):
        block = next(b for b in anatomy.blocks if branch.id in b.branches)
        if branch.id == block.branches[0]:
            start_PND = family.arrive(model, branch, bench.stream_PND)
        for group in branch.groups:
            if (branch.id, group) in weighed.scores:
                menus.append(_unit_menu(run, bench, number, branch, group))
        if "branch" in task.groups:
            here_PND = family.arrive(model, branch, bench.stream_PND)
            loss = bench.divergence(number + 1, here_PND + _left(run, branch).to(here_PND))
            menus.append(drop_menu(branch.id, "branch", loss, task.limits))
        bench.advance(number)
        if "block" in task.groups and branch.id == block.branches[-1]:
            own = [_left(run, anatomy.branch(name)) for name in block.branches]
            loss = bench.divergence(number + 1, start_PND + torch.stack(own).sum(0).to(start_PND))
            menus.append(block_menu(block, loss, task.limits))
        if on_branch is not None:
            on_branch(number + 1, len(anatomy.branches))
    return replace(weighed, menus=menus)


@dataclass(frozen=True, slots=True)
class _Run:
    model: nn.Module
    family: Family
    anatomy: Anatomy
    task: Task
    weighed: Weighed
    evidence: Evidence
    images_PCHW: Tensor


def _unit_menu(run: _Run, bench: Bench, number: int, branch: Branch, group: GroupName) -> Menu:
    score, repair = run.weighed.scores[branch.id, group], run.task.preset.repair
    plain = unit_menu(branch, group, score, run.task.limits)
    dense = run.family.weights(run.model, branch)
    known = moments_of(branch, run.evidence, repair)
    logits = run.evidence.about(branch.id).get("logit_moments")

    def divergence(size: int) -> float:
        units = {group: kept_units(score, size)}
        smaller: BranchWeights = select(dense, units, known, repair, branch.id, logits)
        bench.put(branch, smaller)
        return bench.divergence(number + 1, bench.changed(branch))

    measured = {size: divergence(size) for size in _probed(plain)}
    if measured:
        bench.put(branch, dense)
    return menu_from_probes(branch.id, group, plain.sizes, list(plain.losses), measured)


def _stream_menus(run: _Run, bench: Bench) -> list[Menu]:
    """Menus of streams, measured on narrower copies of the whole model."""
    menus = []
    for stream in run.anatomy.streams:
        key: Key = (stream.id, "width")
        if key not in run.weighed.scores:
            continue
        score_D = run.weighed.scores[key]
        plain, measured = width_menu(stream, score_D, run.task.limits), {}
        for size in _probed(plain):
            kept = kept_units(score_D, size)
            plan = Plan(shapes=run.anatomy.shapes, units={stream.id: {"width": kept}})
            copied = copy_of(run.model)
            repair = run.task.preset.repair
            narrow_streams_(copied, run.family, run.anatomy, plan, run.evidence, repair)
            measured[size] = bench.divergence_of(copied, run.images_PCHW)
        found = menu_from_probes(stream.id, "width", plain.sizes, list(plain.losses), measured)
        menus.append(found)
    return menus


def _probed(menu: Menu) -> list[int]:
    """The sizes of a menu that are nearest to the probed shares."""
    smaller, present = menu.sizes[:-1], menu.sizes[-1]
    return sorted(
        {min(smaller, key=lambda size: abs(size - share * present)) for share in QUICK.shares}
        if smaller
        else set()
    )


def _left(run: _Run, branch: Branch) -> Tensor:
    """What stays of a dropped branch's update (D,)."""
    if run.task.preset.repair == "none":
        device = next(run.model.parameters()).device
        return torch.zeros(branch.width, dtype=torch.float64, device=device)
    return mean_update(run.evidence.about(branch.id))


def _some_images(batches: Batches) -> Tensor:
    taken: list[Tensor] = []
    for batch in batches:
        taken.append(batch.images_BCHW)
        if sum(map(len, taken)) >= QUICK.images:
            break
    return torch.cat(taken)[: QUICK.images]
