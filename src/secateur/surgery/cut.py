"""Make a model smaller: one plan, one pass over its branches, survivors repaired in closed form."""

import torch
from torch import Tensor, nn

from secateur.anatomy.family import Family, family_of
from secateur.anatomy.stream import END, Held, narrowable
from secateur.anatomy.types import Anatomy, Branch, Stream
from secateur.errors import UserError
from secateur.evidence import Evidence
from secateur.planning.types import Plan
from secateur.surgery.moments import Moments, moments
from secateur.surgery.repair import Repair
from secateur.surgery.select import select


def repair_needs(repair: Repair, plan_groups: set[str]) -> set[str]:
    """The kinds of evidence that a repair of these groups asks for."""
    if repair == "none":
        return set()
    detail = "moments" if repair == "least_squares" else "energies"
    needs = set()
    if "hidden" in plan_groups:
        needs.add(f"hidden_{detail}")
    if plan_groups & {"vo", "heads"}:
        needs.add(f"context_{detail}")
    if "qk" in plan_groups and repair == "least_squares":
        needs.add("logit_moments")
    if plan_groups & {"branch", "block"}:
        needs.add("update_mean")
    if "width" in plan_groups:
        needs.add("stream_sums")
    return needs


@torch.no_grad()
def cut_(model: nn.Module, plan: Plan, evidence: Evidence | None, repair: Repair) -> None:
    """Shrink `model` in place to the plan's shapes, with evidence from the uncut model.

    Branches without units in the plan keep their weights untouched. The mean update of a dropped
    branch stays in the stream unless `repair` is `none`.
    """
    family = family_of(model)
    anatomy = family.read(model)
    for branch in anatomy.branches:
        if plan.shapes.get(branch.id) is None:
            continue
        units = plan.units.get(branch.id, {})
        if units:
            known = moments_of(branch, evidence, repair)
            logits = evidence.about(branch.id).get("logit_moments") if evidence else None
            dense = family.weights(model, branch)
            weights = select(dense, units, known, repair, branch.id, logits)
            family.assign_(model, branch, weights)
    drop_branches_(model, family, anatomy, plan, evidence, repair)
    narrow_streams_(model, family, anatomy, plan, evidence, repair)


def narrow_streams_(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    plan: Plan,
    evidence: Evidence | None,
    repair: Repair,
) -> None:
    """Keep the channels that the plan names of each stream.

    Unless `repair` is `none`, norms and readers take the others for constants.
    """
    for stream in anatomy.streams:
        if "width" in (units := plan.units.get(stream.id, {})):
            kept_D = torch.tensor(units["width"], dtype=torch.long)
            held = {} if repair == "none" else _held(anatomy, stream, evidence)
            narrowable(family).narrow_(model, stream, kept_D, held)


def _held(anatomy: Anatomy, stream: Stream, evidence: Evidence | None) -> dict[str, Held]:
    """What the channels of a stream carry before each branch and behind the last one."""
    own = [branch.id for branch in anatomy.branches if anatomy.stream_of(branch) == stream]
    sums = {} if evidence is None else evidence.sums.get("stream_sums", {})
    if missing := [branch for branch in own if branch not in sums]:
        raise UserError(
            f"{stream.id} becomes narrower without evidence of what passes before {missing[0]}; "
            "observe the uncut model with the kinds in repair_needs(), or use repair 'none'."
        )

    def held(branch: str, when: str) -> Held:
        mean_D, square_D = (
            sums[branch][f"{when}_{what}"] / sums[branch]["count"] for what in ("sum", "square")
        )
        return Held(mean_D=mean_D, square_D=square_D)

    places = {branch: held(branch, "before") for branch in own}
    return places | ({END: held(own[-1], "after")} if own else {})


def drop_branches_(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    plan: Plan,
    evidence: Evidence | None,
    repair: Repair,
) -> None:
    """Remove the branches whose shape is None; fold their mean update into earlier biases."""
    dropped = {b.id for b in anatomy.branches if plan.shapes.get(b.id) is None}
    family.drop_(model, dropped)
    if repair == "none":
        return
    for branch in anatomy.branches:
        if branch.id in dropped:
            family.add_constant_(model, branch, mean_update(evidence, branch))


def mean_update(evidence: Evidence | None, branch: Branch) -> Tensor:
    """Mean over tokens of what a branch adds to the stream (D,), fp64."""
    about = {} if evidence is None else evidence.about(branch.id)
    sums = about.get("update_mean") or about.get("branch_similarity")
    if sums is None:
        raise UserError(
            f"{branch.id} is dropped without evidence of its mean update; observe the uncut model "
            "with the kinds in repair_needs(), or use repair 'none'."
        )
    return sums["update_sum"] / sums["count"]


def moments_of(branch: Branch, evidence: Evidence | None, repair: Repair) -> Moments | None:
    """Moments of what the branch's writer reads, as far as the repair needs and there are any."""
    if evidence is None or repair == "none":
        return None
    prefix = "context" if branch.kind == "attention" else "hidden"
    about = evidence.about(branch.id)
    if f"{prefix}_moments" in about:
        return moments(about[f"{prefix}_moments"])
    if f"{prefix}_energies" in about and repair == "mean":
        return _diagonal(about[f"{prefix}_energies"])
    return None


def _diagonal(sums: dict[str, Tensor]) -> Moments:
    """Moments that know means and variances only, enough for the repair `mean`."""
    count = float(sums["count"])
    mean_U = sums["sum"].double() / count
    variance_U = sums["square"].double() / count - mean_U.square()
    return Moments(mean_U=mean_U, cov_UU=torch.diag(variance_U), count=count)
