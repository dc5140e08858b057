"""Make a model smaller: one plan, one pass over its branches, survivors repaired in closed form."""

from collections.abc import Mapping

import torch
from torch import nn

from secateur.allocation.types import Plan
from secateur.errors import UserError
from secateur.models.host import Host, host_of
from secateur.models.stream import END, Held
from secateur.models.types import Anatomy, Branch, Stream
from secateur.statistics import Statistics, Sums
from secateur.statistics.moments import Moments, moments, variances
from secateur.surgery.repair import SOLVED, Repair
from secateur.surgery.replace import Replacement, drop_, replacement_needs
from secateur.surgery.select import select
from secateur.surgery.take_over import take_over_


def repair_needs(
    repair: Repair,
    plan_groups: set[str],
    replacement: Replacement | None = None,
    *,
    rotated: bool = False,
) -> set[str]:
    """The kinds of statistics that a repair of these groups, and a replacement, ask for.

    `rotated` says that the stream is in its principal components.
    """
    needs: set[str] = set()
    if plan_groups & {"branch", "block"}:
        needs |= replacement_needs(replacement or default_replacement(repair))
    if repair == "none":
        return needs
    detail = "moments" if repair in SOLVED else "energies"
    if "hidden" in plan_groups:
        needs.add(f"hidden_{detail}")
    if plan_groups & {"vo", "heads"}:
        needs.add(f"context_{detail}")
    if "qk" in plan_groups and repair in SOLVED:
        needs.add("logit_moments")
    if "width" in plan_groups:
        needs.add("stream_sums")
        if rotated and repair in SOLVED:
            needs.add("input_moments")
    return needs


def default_replacement(repair: Repair) -> Replacement:
    """What stands in for dropped branches unless said otherwise: their mean, if all is repaired."""
    return "nothing" if repair == "none" else "mean"


@torch.no_grad()
def cut_(
    model: nn.Module,
    plan: Plan,
    statistics: Statistics | None,
    repair: Repair,
    replacement: Replacement | None = None,
    anchors: Mapping[str, Sums] | None = None,
) -> None:
    """Shrink `model` in place to the plan's shapes, with statistics from the uncut model.

    Branches without units in the plan keep their weights untouched. `replacement` takes the place
    of dropped branches: their mean update stays in the stream unless told otherwise or `repair` is
    `none`. The replacements `affine` and `linear` need `anchors`: see `secateur.statistics.anchors`
    and `secateur.statistics.gaps`.
    """
    host = host_of(model)
    for branch in host.anatomy.branches:
        if plan.shapes.get(branch.id) is None:
            continue
        units = plan.units.get(branch.id, {})
        if units:
            known = moments_of(branch, statistics, repair)
            logits = statistics.about(branch.id).get("logit_moments") if statistics else None
            dense = host.weights(branch)
            host.assign_(branch, select(dense, units, known, repair, branch.id, logits))
    how = replacement or default_replacement(repair)
    drop_(host, plan.shapes, how, statistics, anchors or {})
    narrow_streams_(host, plan, statistics, repair)


def narrow_streams_(host: Host, plan: Plan, statistics: Statistics | None, repair: Repair) -> None:
    """Keep the channels that the plan names of each stream.

    Unless `repair` is `none`, norms and readers take the others for constants. In a stream that is
    rotated, norms always count them, without a repair as zeros, and readers are fitted to what is
    left by the repairs that solve.
    """
    model, anatomy = host.model, host.anatomy
    rotated = plan.reductions.get("width") == "rotate"
    device = next(model.parameters()).device
    for stream in anatomy.streams:
        if "width" in (units := plan.units.get(stream.id, {})):
            kept_D = torch.tensor(units["width"], dtype=torch.long, device=device)
            if repair == "none":
                held = _zeros(anatomy, stream, device) if rotated else {}
            else:
                held = _held(anatomy, stream, statistics)
            if rotated and repair in SOLVED:
                for branch in host.family.read(model).branches:
                    take_over_(host, branch, kept_D, statistics)
            host.family.narrow_(model, stream, kept_D, held)


def _zeros(anatomy: Anatomy, stream: Stream, device: torch.device) -> dict[str, Held]:
    """Channels that carry nothing, everywhere."""
    nothing_D = torch.zeros(stream.width, dtype=torch.float64, device=device)
    held = Held(mean_D=nothing_D, square_D=nothing_D)
    return {branch.id: held for branch in anatomy.branches} | {END: held}


def _held(anatomy: Anatomy, stream: Stream, statistics: Statistics | None) -> dict[str, Held]:
    """What the channels of a stream carry before each branch and behind the last one."""
    own = [branch.id for branch in anatomy.branches if anatomy.stream_of(branch) == stream]
    sums = {} if statistics is None else statistics.sums.get("stream_sums", {})
    if missing := [branch for branch in own if branch not in sums]:
        raise UserError(
            f"{stream.id} becomes narrower without statistics of what passes before {missing[0]}; "
            "observe the uncut model with the kinds in repair_needs(), or use repair 'none'."
        )

    def held(branch: str, when: str) -> Held:
        mean_D, square_D = (
            sums[branch][f"{when}_{what}"] / sums[branch]["count"] for what in ("sum", "square")
        )
        return Held(mean_D=mean_D, square_D=square_D)

    places = {branch: held(branch, "before") for branch in own}
    return places | ({END: held(own[-1], "after")} if own else {})


def moments_of(branch: Branch, statistics: Statistics | None, repair: Repair) -> Moments | None:
    """Moments of what the branch's writer reads, as far as the repair needs and there are any."""
    if statistics is None or repair == "none":
        return None
    prefix = "context" if branch.kind == "attention" else "hidden"
    about = statistics.about(branch.id)
    if f"{prefix}_moments" in about:
        return moments(about[f"{prefix}_moments"])
    if f"{prefix}_energies" in about and repair == "mean":
        return variances(about[f"{prefix}_energies"])
    return None
