"""The same widths in all blocks."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import across, width_gates
from secateur.models.types import Branch, GroupName


@sharing(
    "uniform",
    title="All blocks keep equally many dims, heads and neurons, each its own",
    removal="Everything masked goes: all blocks end with the same widths.",
    groups=("qk", "vo", "heads", "hidden"),
)
def uniform(scope: Scope) -> list[Gate]:
    """One count per group for the whole model, as in Sheared LLaMA (ICLR 2024)."""
    found: dict[GroupName, list[Branch]] = {
        group: scope.attentions(group) for group in ("qk", "vo", "heads")
    }
    found["hidden"] = scope.mlps()
    gates = [across(scope, group, group, found[group]) for group in found if found[group]]
    return gates + width_gates(scope)
