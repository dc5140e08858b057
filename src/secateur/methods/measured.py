"""Candidates of a criterion measured on the model's output: units by score, losses by divergence.

Each group is cut to two sizes, its units chosen by score and repaired as the preset says; the
divergence is measured on images held out of the scores and the repair, and carried to the other
sizes along the summed scores.
"""

from collections.abc import Callable

import torch

from secateur.ablation.candidates import QUICK, measure_candidates
from secateur.ablation.probe_runner import ProbeRunner
from secateur.ablation.selected import Selected, stream_candidates
from secateur.allocation.budget import CostBudget
from secateur.allocation.types import Candidates
from secateur.data.batches import Batches
from secateur.data.split import all_images, first_images
from secateur.methods.scored import ScoredUnits
from secateur.methods.task import Task
from secateur.models.host import Host
from secateur.statistics import Statistics
from secateur.statistics.divergence import LossName


def wants_measuring(task: Task) -> bool:
    """Whether the preset measures its candidates, and the sizes depend on them.

    Scores of whole layers, or of whole blocks, are on one scale as they are.
    """
    by_losses = isinstance(task.budget, CostBudget) and task.preset.allocation != "uniform"
    alike = task.groups in (("branch",), ("block",))
    return task.preset.candidates == "measured" and by_losses and not alike


@torch.no_grad()
def measured_candidates(
    host: Host,
    task: Task,
    scored: ScoredUnits,
    statistics: Statistics,
    held: Batches,
    on_branch: Callable[[int, int], None] | None = None,
    loss: LossName | None = None,
) -> list[Candidates]:
    """Candidates in the unit of the loss, measured on the first of the held-out images."""
    images_PCHW = all_images(first_images(held, QUICK.images))
    probe = ProbeRunner.of(host, images_PCHW, loss=loss)
    reducer = Selected(
        scores=scored.scores, repair=task.preset.repair, statistics=statistics, limits=task.limits
    )
    candidates = stream_candidates(probe, reducer, images_PCHW, QUICK.shares)
    found = measure_candidates(probe, reducer, task.groups, task.limits, QUICK.shares, on_branch)
    return [*candidates, *found.candidates]
