"""Menus that are measured: reduce one group at a time, look at what the whole model then says.

Each probe replaces one branch by its reduced form, repaired with the evidence at hand, and runs
the rest of the dense model on from there; its damage is the divergence KL(dense || probed) of the
outputs in nats (for models without classes 1 - cosine; see `measurement/divergence.py`).
Legend: B batch, N tokens, D residual width, C classes, P probe images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.ablation.bench import Bench
from secateur.allocation.curves import menu_from_probes
from secateur.allocation.menus import Limits, allowed_sizes, block_menu, drop_menu
from secateur.allocation.types import Menu
from secateur.criteria.elimination import Elimination, eliminate, eliminate_heads
from secateur.models.family import Family
from secateur.models.types import Anatomy, Branch, GroupName
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.statistics import Evidence, Sums
from secateur.statistics.moments import Moments, moments
from secateur.surgery.reduce import (
    RefitSettings,
    reduce_heads,
    reduce_hidden,
    reduce_query_key,
    reduce_value,
    refit,
)
from secateur.surgery.rotate import query_key_basis, value_basis

PROBE_REFIT = RefitSettings(ridges=(1e-3,), lack_ridges=(1e-3,), blend=0.0)
"""Probes repair with one fixed ridge and the local target: there is nothing to choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much probing a run may do: images, and the shares of each group's size to measure."""

    images: int
    shares: tuple[float, ...]


QUICK = Effort(images=32, shares=(0.5, 0.25))
FULL = Effort(images=64, shares=(0.75, 0.5, 0.25, 0.125))


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One measurement: the divergence with a group at a size."""

    owner: str
    group: GroupName
    size: int
    divergence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """Menus of all groups, and the measurements behind them."""

    menus: list[Menu]
    probes: list[Probe]


@torch.no_grad()
def probe_menus(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    groups: tuple[GroupName, ...],
    limits: Limits,
    evidence: Evidence,
    images_PCHW: Tensor,
    shares: tuple[float, ...],
    on_branch: Callable[[int, int], None] | None = None,
) -> Probed:
    """Measure menus branch by branch along the dense stream of the probe images."""
    bench = Bench.of(model, family, anatomy, images_PCHW)
    menus: list[Menu] = []
    probes: list[Probe] = []
    block_start: Tensor = bench.stream_PND
    for number, branch in enumerate(anatomy.branches):
        about = evidence.about(branch.id)
        arrived_PND = family.arrive(model, branch, bench.stream_PND)
        weights = family.weights(model, branch)
        block = next(b for b in anatomy.blocks if branch.id in b.branches)
        if branch.id == block.branches[0]:
            block_start = arrived_PND
        for group in [group for group in groups if group in branch.groups]:
            curve = error_curve(weights, group, allowed_sizes(branch, group, limits), about)
            found = _probe_sizes(bench, number, branch, weights, group, curve, about, shares)
            probes += found
            measured = {probe.size: probe.divergence for probe in found}
            sizes, errors = tuple(curve.errors), list(curve.errors.values())
            menus.append(menu_from_probes(branch.id, group, sizes, errors, measured))
        if "branch" in groups:
            mean_D = mean_update(about).to(bench.stream_PND)
            loss = bench.divergence(number + 1, arrived_PND + mean_D)
            probes.append(Probe(owner=branch.id, group="branch", size=0, divergence=loss))
            menus.append(drop_menu(branch.id, "branch", loss, limits))
        bench.advance(number)
        if "block" in groups and branch.id == block.branches[-1]:
            means = [mean_update(evidence.about(name)) for name in block.branches]
            total_D = torch.stack(means).sum(0).to(bench.stream_PND)
            loss = bench.divergence(number + 1, block_start + total_D)
            probes.append(Probe(owner=block.id, group="block", size=0, divergence=loss))
            menus.append(block_menu(block, loss, limits))
        if on_branch is not None:
            on_branch(number + 1, len(anatomy.branches))
    return Probed(menus=menus, probes=probes)


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
    """The branch with one group at `size`, repaired from the evidence.

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


def _probe_sizes(
    bench: Bench,
    number: int,
    branch: Branch,
    weights: BranchWeights,
    group: GroupName,
    curve: Curve,
    about: dict[str, Sums],
    shares: tuple[float, ...],
) -> list[Probe]:
    """Measure a group at those of its sizes that are nearest to the wanted shares."""
    smaller = [size for size in curve.errors if size < branch.shape.size(group)]
    wanted = {
        min(smaller, key=lambda size: abs(size - share * branch.shape.size(group)))
        for share in shares
        if smaller
    }
    found = []
    for size in sorted(wanted):
        bench.put(branch, reduced(weights, group, size, about, branch.id, curve.order))
        loss = bench.divergence(number + 1, bench.changed(branch))
        found.append(Probe(owner=branch.id, group=group, size=size, divergence=loss))
    if wanted:
        bench.put(branch, weights)
    return found


def mean_update(about: dict[str, Sums]) -> Tensor:
    """What a branch adds to the stream on average (D,)."""
    sums = about.get("update_mean") or about["branch_similarity"]
    return sums["update_sum"] / sums["count"]


def probe_needs(groups: tuple[GroupName, ...]) -> set[str]:
    """The kinds of evidence that probing these groups asks for."""
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
