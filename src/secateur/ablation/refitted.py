"""Candidates by elimination and rotation, each refitted by least squares (the spectral method).

Legend: D residual width, F hidden neurons, H heads, K query/key dims, S kept units, U inputs of a
writer, V value dims.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from secateur.ablation.candidates import Reductions
from secateur.allocation.candidates import Limits, allowed_sizes
from secateur.criteria.elimination import Elimination, eliminate, eliminate_heads
from secateur.models.types import Branch, GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Statistics, Sums
from secateur.statistics.moments import Moments, moments
from secateur.surgery.reduce import (
    RefitSettings,
    reduce_heads,
    reduce_hidden,
    reduce_query_key,
    reduce_value,
    refit,
)
from secateur.surgery.replace import mean_update
from secateur.surgery.rotate import query_key_basis, value_basis

PROBE_REFIT = RefitSettings(ridges=(1e-3,), lack_ridges=(1e-3,), blend=0.0)
"""Probes repair with one fixed ridge and the local target: there is nothing to choose."""


@dataclass(frozen=True, slots=True)
class Refitted:
    """Reduces every group by its own closed form, from statistics with `refit_needs`."""

    statistics: Statistics
    limits: Limits

    def reductions(self, branch: Branch, group: GroupName, weights: BranchWeights) -> Reductions:
        """The smaller forms of a group of a branch."""
        about = self.statistics.about(branch.id)
        curve = error_curve(weights, group, allowed_sizes(branch, group, self.limits), about)
        at = partial(reduced, weights, group, about=about, owner=branch.id, order=curve.order)
        return Reductions(errors=curve.errors, at=at)

    def remainder(self, branch: Branch, like: Tensor) -> Tensor:
        """The mean update of a dropped branch (D,)."""
        return mean_update(self.statistics, branch).to(like.device)


def refit_needs(groups: tuple[GroupName, ...]) -> set[str]:
    """The kinds of statistics that refitting these groups asks for."""
    needs: set[str] = set()
    if "qk" in groups:
        needs.add("attention_moments")
    if "vo" in groups or "heads" in groups:
        needs.add("context_moments")
    if "hidden" in groups:
        needs.add("hidden_moments")
    if "branch" in groups or "block" in groups:
        needs.add("update_mean")
    return needs


@dataclass(frozen=True, slots=True)
class Curve:
    """Squared errors by size, and the elimination of hidden neurons that gave them."""

    errors: dict[int, float]
    order: Elimination | None = None


def error_curve(
    weights: BranchWeights, group: GroupName, sizes: tuple[int, ...], about: dict[str, Sums]
) -> Curve:
    """Squared error of the layer's logits or output when a group has each of the sizes."""
    if isinstance(weights, MlpWeights):
        joint = moments(about["hidden_moments"])
        order = eliminate(joint.cov_UU, weights.w2_DF, PROBE_REFIT.select_ridge)
        return Curve({size: float(order.errors[size]) for size in sizes}, order)
    if group == "qk":
        sums = about["attention_moments"]
        basis = query_key_basis(sums["q_gram"] / sums["count"], sums["k_gram"] / sums["count"])
        return Curve({size: float(basis.spectrum_HK[:, size:].sum()) for size in sizes})
    w_DU = weights.o_DHV.flatten(1)
    joint = moments(about["context_moments"])
    heads = weights.shape.heads
    if group == "heads":
        errors_H = eliminate_heads(joint.cov_UU, w_DU, heads, PROBE_REFIT.select_ridge).errors
        return Curve({size: float(errors_H[size]) for size in sizes})
    dense = weights.shape.vo
    smaller = [size for size in sizes if size < dense]
    errors = {s: value_basis(joint.cov_UU, w_DU, heads, s, rounds=1)[1] for s in smaller}
    return Curve(errors | {dense: 0.0})


def reduced(
    weights: BranchWeights,
    group: GroupName,
    size: int,
    about: dict[str, Sums],
    owner: str,
    order: Elimination | None = None,
) -> BranchWeights:
    """The branch with one group at `size`, repaired from the statistics.

    `order` is the elimination of its hidden neurons, where it is known already.
    """
    if isinstance(weights, MlpWeights):
        joint = moments(about["hidden_moments"])
        return reduce_hidden(weights, size, joint, None, PROBE_REFIT, owner, order)
    if group == "qk":
        sums = about["attention_moments"]
        count = sums["count"]
        return reduce_query_key(weights, size, sums["q_gram"] / count, sums["k_gram"] / count)
    joint = moments(about["context_moments"])
    if group == "vo":
        return reduce_value(weights, size, joint, None, PROBE_REFIT, owner)
    return _refitted_heads(weights, size, joint, owner)


def _refitted_heads(
    weights: AttentionWeights, size: int, joint: Moments, owner: str
) -> AttentionWeights:
    """Keep the best heads and let the projection make up for the others from the old contexts."""
    dims = weights.shape.vo
    order = eliminate_heads(
        joint.cov_UU, weights.o_DHV.flatten(1), weights.shape.heads, PROBE_REFIT.select_ridge
    )
    kept_H = order.kept(size)
    kept_S = (kept_H[:, None] * dims + torch.arange(dims, device=kept_H.device)).flatten()
    kept_S = kept_S.to(weights.o_DHV.device)
    done = refit(weights.o_DHV.flatten(1), weights.ob_D, kept_S, joint, None, PROBE_REFIT, owner)
    fewer = reduce_heads(weights, size, joint, PROBE_REFIT)
    return replace(fewer, o_DHV=done.w_DS.unflatten(1, (size, dims)), ob_D=done.b_D)
