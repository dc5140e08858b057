"""Shared and independent decisions at several scales."""

from secateur.learning.gates import Gate
from secateur.learning.layout import branch_gate, dims_gate, heads_gate, hidden_gate
from secateur.learning.sharing import Scope, sharing


@sharing(
    "mixed",
    title="Dims shared by all heads, whole heads and whole layers; neurons have their own masks",
    removal="Everything masked goes; a masked layer goes with its norm.",
    groups=("qk", "vo", "heads", "hidden", "branch"),
)
def mixed(scope: Scope) -> list[Gate]:
    """Coarse and fine together, as in CoFi (ACL 2022); for budgets of a fifth and less."""
    gates = []
    for group in ("qk", "vo"):
        gates += [dims_gate(scope, b, group, shared=True) for b in scope.attentions(group)]
    gates += [heads_gate(scope, branch) for branch in scope.attentions("heads")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    gates += [branch_gate(scope, b) for b in scope.anatomy.branches if scope.has(b, "branch")]
    return gates
