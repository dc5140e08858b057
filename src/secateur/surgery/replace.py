"""Replacements of dropped layers; all but `linear` are folded into weights that stay.

- `nothing`: the stream passes.
- `mean`: the mean update stays, in an earlier bias.
- `scalar`: the stream behind the dropped ones is longer by alpha = E||after|| / E||before||
  (Prune&Comp, AAAI 2026, arXiv 2507.18212). Norms read directions, so instead of lengthening the
  stream every later writer is divided by alpha.
- `affine`: the kept branch before them, the anchor, gives with its own update m also the best
  affine guess of what they would have added: m <- m + A m + c, by ridge regression, into its
  writer (ReplaceMe, NeurIPS 2025, arXiv 2505.02819, which has no intercept c).
- `linear`: a linear layer in their place, at its own cost: the map that guesses best what they add,
  from what the first of them reads behind its norm. NBL (NeurIPS 2025, arXiv 2505.21077) for one
  attention layer, in the manner of TOAST (which maps the stream before a window of blocks to that
  behind it) for more. Its ridge is chosen on images held out, then all images are fitted.
- `merge`: the kept block before dropped ones takes theta + sum_k (theta_k - theta), theta_k the
  parameters of the dropped blocks (LaCo, arXiv 2402.11187; its code subtracts the sum so far in
  place of theta, which leaves just the last block).

Legend: D residual width, U inputs of a writer.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.models.host import Host
from secateur.models.types import Anatomy, Branch, Shapes
from secateur.models.weights import AttentionWeights, BranchWeights
from secateur.statistics import Statistics, Sums
from secateur.statistics.gaps import HELD
from secateur.statistics.kinds.similarity import TINY
from secateur.statistics.moments import joint_moments
from secateur.surgery.solve import Choice, LinearMap, choose, least_squares

Replacement = Literal["nothing", "mean", "scalar", "affine", "linear", "merge"]
REPLACEMENTS: tuple[str, ...] = get_args(Replacement)

LINEAR_RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for the ridge of `linear`."""
LINEAR_RIDGE = 1e-3
"""The ridge of `linear` where too few images were given to hold any out."""


def replacement_needs(replacement: Replacement) -> set[str]:
    """The kinds of statistics that a replacement asks of the uncut model.

    `affine` and `linear` also take a pass of their own once the plan is known. Where there is no
    branch before the dropped ones, `affine` falls back on the mean; searches take the mean for
    `linear`, too.
    """
    if replacement == "scalar":
        return {"branch_similarity"}
    return {"update_mean"} if replacement in ("mean", "affine", "linear") else set()


def runs_of(anatomy: Anatomy, shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Each kept branch that has dropped ones of its stage right behind it, with those."""
    runs: dict[str, tuple[str, ...]] = {}
    anchor = None
    for branch in anatomy.branches:
        if shapes.get(branch.id) is not None:
            anchor = branch
        elif anchor is not None and anchor.stage == branch.stage:
            runs[anchor.id] = (*runs.get(anchor.id, ()), branch.id)
    return runs


def gaps_of(anatomy: Anatomy, shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """The first of each run of dropped branches, with the whole run."""
    gaps: dict[str, tuple[str, ...]] = {}
    first = None
    for branch in anatomy.branches:
        if shapes.get(branch.id) is not None:
            first = None
            continue
        first = first or branch.id
        gaps[first] = (*gaps.get(first, ()), branch.id)
    return gaps


def check_replacement(host: Host, replacement: Replacement, groups: set[str]) -> None:
    """UserError where a replacement cannot work on this model or with these groups."""
    if replacement == "merge" and groups != {"block"}:
        raise UserError(
            "replacement 'merge' adds up the parameters of whole blocks, so nothing else may be "
            "pruned beside it; prune with --groups block, or take another replacement."
        )
    if replacement == "linear" and not host.family.one_stream:
        raise UserError(
            f"replacement 'linear' is not offered for {host.family.title}, where more than a norm "
            "stands between some branches and the stream; use 'affine', 'mean' or 'nothing'."
        )
    if replacement in ("scalar", "affine", "linear"):
        behind = [b.id for b in host.anatomy.branches if not host.writes_linearly(b)]
        if behind:
            where = "needs the norm before" if replacement == "linear" else "is folded into writers"
            raise UserError(
                f"replacement '{replacement}' {where}, but a norm stands behind that of "
                f"{behind[0]}; use 'mean' or 'nothing'."
            )


@torch.no_grad()
def drop_(
    host: Host,
    shapes: Shapes,
    replacement: Replacement,
    statistics: Statistics | None,
    anchors: Mapping[str, Sums],
) -> None:
    """Remove the branches whose shape is None and put the replacement in place.

    `anchors` are the moments of `secateur.statistics.anchors` for the runs of this plan, or of
    `secateur.statistics.gaps` for its gaps.
    """
    model, family, anatomy = host.model, host.family, host.anatomy
    dropped = {branch.id for branch in anatomy.branches if shapes.get(branch.id) is None}
    if replacement == "merge":
        _merge_(host, dropped)
    gaps = gaps_of(anatomy, shapes) if replacement == "linear" else {}
    for first in gaps:
        found = linear_map(anchors[first], first)
        family.put_linear_(model, anatomy.branch(first), found.w_DS, found.b_D)
    family.drop_(model, dropped - set(gaps))
    if replacement == "scalar":
        _shorten_(host, dropped, statistics)
    done: set[str] = set()
    if replacement == "affine":
        for anchor, run in runs_of(anatomy, shapes).items():
            _fold_(host, anatomy.branch(anchor), anchors[anchor])
            done.update(run)
    if replacement in ("mean", "affine"):
        for branch in anatomy.branches:
            if branch.id in dropped - done:
                family.add_constant_(model, branch, mean_update(statistics, branch))


def mean_update(statistics: Statistics | None, branch: Branch) -> Tensor:
    """Mean over tokens of what a branch adds to the stream (D,), fp64."""
    about = {} if statistics is None else statistics.about(branch.id)
    sums = about.get("update_mean") or about.get("branch_similarity")
    if sums is None:
        raise UserError(
            f"{branch.id} is dropped without evidence of its mean update; observe the uncut model "
            "with the kinds in repair_needs(), or use repair 'none'."
        )
    return sums["update_sum"] / sums["count"]


def affine_map(sums: Sums, owner: str) -> LinearMap:
    """A (D, D) and c (D,) of y = A x + c with the least squared error, slightly ridged.

    `sums` are those of `secateur.statistics.anchors` for one run.
    """
    return least_squares(joint_moments(sums), owner, steps=2)


def linear_map(sums: Sums, owner: str) -> LinearMap:
    """A (D, D) and c (D,) that map best what a gap reads to what it adds to the stream.

    `sums` are those of `secateur.statistics.gaps` for one gap.
    """
    fit = {name: value for name, value in sums.items() if not name.startswith(HELD)}
    held = {name.removeprefix(HELD): sums[name] for name in sums if name.startswith(HELD)}
    if not held or not fit:
        return least_squares(joint_moments(fit or held), owner, Choice(ridge=LINEAR_RIDGE))
    choice = choose(joint_moments(fit), joint_moments(held), owner, LINEAR_RIDGES)
    both = {name: fit[name] + held[name] for name in fit}
    return least_squares(joint_moments(both), owner, choice)


def _fold_(host: Host, anchor: Branch, sums: Sums) -> None:
    """Let the anchor's update m become m + A m + c."""
    found = affine_map(sums, anchor.id)
    map_DD, constant_D = found.w_DS, found.b_D
    behind_D = host.family.writer_shift(host.model, anchor)
    if behind_D is not None:
        # WHY: what is added behind the writer is part of m, but no part of what it writes.
        constant_D = constant_D + map_DD @ behind_D.detach().double()
    scale = host.family.writer_scale(host.model, anchor)
    scale_D = torch.ones_like(constant_D) if scale is None else scale.detach().double()
    # WHY: where LayerScale is zero the writer reaches nothing, so nothing can be folded there.
    inverse_D = torch.where(scale_D == 0, 0.0, 1 / scale_D)
    eye_DD = torch.eye(len(constant_D), dtype=torch.float64, device=constant_D.device)
    inner_DD = eye_DD + inverse_D[:, None] * map_DD * scale_D
    weights = host.weights(anchor)
    bias_D = bias_of(weights)
    shift_D = inverse_D * constant_D
    if bias_D is not None:
        shift_D = shift_D + inner_DD @ bias_D.double()
    host.assign_(anchor, rewritten(weights, inner_DD, shift_D))


def bias_of(weights: BranchWeights) -> Tensor | None:
    """The bias of the writer (D,)."""
    return weights.ob_D if isinstance(weights, AttentionWeights) else weights.b2_D


def rewritten(weights: BranchWeights, map_DD: Tensor, bias_D: Tensor | None) -> BranchWeights:
    """The weights with a map behind the writer, and this bias."""
    if isinstance(weights, AttentionWeights):
        o_DHV = torch.einsum("ed,dhv->ehv", map_DD, weights.o_DHV.double())
        return replace(weights, o_DHV=o_DHV, ob_D=bias_D)
    return replace(weights, w2_DF=map_DD @ weights.w2_DF.double(), b2_D=bias_D)


def _shorten_(host: Host, dropped: set[str], statistics: Statistics | None) -> None:
    """Divide every later writer by how much longer the dropped branches made the stream."""
    longer = 1.0
    for branch in host.anatomy.branches:
        if branch.id in dropped:
            sums = {} if statistics is None else statistics.about(branch.id)["branch_similarity"]
            before, after = (
                float(sums[f"{when}_norm"] / sums["count"]) for when in ("stream", "after")
            )
            # WHY: a stream of zeros has no direction to keep, so there is nothing to lengthen.
            if min(before, after) > TINY:
                longer *= after / before
        elif longer != 1.0:
            weights = host.weights(branch)
            bias_D = bias_of(weights)
            device = weights_device(weights)
            shorter = torch.eye(branch.width, dtype=torch.float64, device=device) / longer
            less_D = None if bias_D is None else bias_D.double() / longer
            host.assign_(branch, rewritten(weights, shorter, less_D))


def weights_device(weights: BranchWeights) -> torch.device:
    """Where the weights are."""
    return weights.o_DHV.device if isinstance(weights, AttentionWeights) else weights.w2_DF.device


def _merge_(host: Host, dropped: set[str]) -> None:
    """Add to each kept block how the dropped ones behind it differ from it."""
    base: dict[str, Tensor] = {}
    kept, model = None, host.model
    for block in host.anatomy.blocks:
        if not block.branches:
            continue
        own = dict(model.get_submodule(block.id).named_parameters())
        if not set(block.branches) <= dropped:
            kept, base = block.id, {name: p.detach().clone() for name, p in own.items()}
        elif kept is not None:
            if {k: p.shape for k, p in own.items()} != {k: p.shape for k, p in base.items()}:
                raise UserError(
                    f"{block.id} cannot be merged into {kept}, whose parameters have other "
                    "shapes; use another replacement."
                )
            for name, parameter in model.get_submodule(kept).named_parameters():
                parameter.add_(own[name] - base[name])
