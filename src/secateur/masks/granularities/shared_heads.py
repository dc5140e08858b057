"""The same dims in all heads of a layer."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import dims_gate, hidden_gate, width_gates


@sharing(
    "shared_heads",
    title="All heads of a layer share the mask of query/key dims and that of value dims",
    removal="Everything masked goes: heads lose the same dims.",
    groups=("qk", "vo", "hidden"),
)
def shared_heads(scope: Scope) -> list[Gate]:
    """One score per dim, whatever the head, for queries with keys and for values."""
    gates = [dims_gate(scope, branch, "qk", shared=True) for branch in scope.attentions("qk")]
    gates += [dims_gate(scope, branch, "vo", shared=True) for branch in scope.attentions("vo")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    return gates + width_gates(scope)
