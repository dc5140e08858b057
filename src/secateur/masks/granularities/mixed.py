"""Shared and independent decisions at several scales."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import branch_gate, dims_gate, heads_gate, hidden_gate, width_gates


@sharing(
    "mixed",
    title="One mask for the stream; dims shared by all heads, whole heads and layers; neurons each",
    removal=(
        "Everything masked goes; a masked layer goes with its norm, a channel of the stream from "
        "the whole model."
    ),
    groups=("qk", "vo", "heads", "hidden", "branch", "width"),
)
def mixed(scope: Scope) -> list[Gate]:
    """Coarse and fine together, as in CoFi (ACL 2022); for budgets of a fifth and less."""
    gates = []
    for group in ("qk", "vo"):
        gates += [dims_gate(scope, b, group, shared=True) for b in scope.attentions(group)]
    gates += [heads_gate(scope, branch) for branch in scope.attentions("heads")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    gates += [branch_gate(scope, b) for b in scope.anatomy.branches if scope.has(b, "branch")]
    return gates + width_gates(scope)
