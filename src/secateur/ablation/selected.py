"""Candidates by score: the best units of each group stay, repaired as the preset says.

Scores order the units of one layer; those of different layers and kinds have no common scale, which
the measured divergence gives them. Legend: D residual width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.ablation.candidates import Reductions, nearest_sizes
from secateur.ablation.probe_runner import ProbeRunner
from secateur.allocation.candidates import Limits, kept_units, unit_candidates, width_candidates
from secateur.allocation.curves import candidates_from_probes
from secateur.allocation.types import Candidates, Key, Plan
from secateur.models.caches import copy_of
from secateur.models.types import Branch, GroupName
from secateur.models.weights import BranchWeights
from secateur.statistics import Statistics
from secateur.surgery.cut import moments_of, narrow_streams_
from secateur.surgery.repair import Repair
from secateur.surgery.replace import mean_update
from secateur.surgery.select import select


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Keeps the units of highest score and repairs the writer from the statistics."""

    scores: Mapping[Key, Tensor]
    repair: Repair
    statistics: Statistics
    limits: Limits

    def reductions(self, branch: Branch, group: GroupName, weights: BranchWeights) -> Reductions:
        """The smaller forms of a group of a branch; their error is the sum of lost scores."""
        score = self.scores[branch.id, group]
        plain = unit_candidates(branch, group, score, self.limits)
        known = moments_of(branch, self.statistics, self.repair)
        logits = self.statistics.about(branch.id).get("logit_moments")

        def at(size: int) -> BranchWeights:
            units = {group: kept_units(score, size)}
            return select(weights, units, known, self.repair, branch.id, logits)

        return Reductions(errors=dict(zip(plain.sizes, plain.losses, strict=True)), at=at)

    def remainder(self, branch: Branch, like: Tensor) -> Tensor:
        """The mean update of a dropped branch (D,), zero without a repair."""
        if self.repair == "none":
            return torch.zeros(branch.width, dtype=torch.float64, device=like.device)
        return mean_update(self.statistics, branch).to(like.device)


def stream_candidates(
    probe: ProbeRunner, reducer: Selected, images_PCHW: Tensor, shares: tuple[float, ...]
) -> Iterator[Candidates]:
    """Candidates of the streams that have scores, measured on narrower copies of the model."""
    runner = probe.runner
    for stream in runner.anatomy.streams:
        score_D = reducer.scores.get((stream.id, "width"))
        if score_D is None:
            continue
        plain, measured = width_candidates(stream, score_D, reducer.limits), {}
        for size in nearest_sizes(plain.sizes, plain.sizes[-1], shares):
            kept = kept_units(score_D, size)
            plan = Plan(shapes=runner.anatomy.shapes, units={stream.id: {"width": kept}})
            smaller = runner.with_model(copy_of(runner.model))
            narrow_streams_(smaller, plan, reducer.statistics, reducer.repair)
            measured[size] = probe.with_model(smaller.model, images_PCHW).divergence
        yield candidates_from_probes(stream.id, "width", plain.sizes, list(plain.losses), measured)
