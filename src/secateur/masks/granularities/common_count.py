"""Each head its own dims, equally many."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import dims_gate, heads_gate, hidden_gate, width_gates


@sharing(
    "common_count",
    title="Heads of a layer share only how many dims they keep; whole heads and neurons may go",
    removal="Everything masked goes: heads choose their own dims, equally many.",
    groups=("qk", "vo", "heads", "hidden"),
)
def common_count(scope: Scope) -> list[Gate]:
    """The freest strategy of which nothing masked is left."""
    gates = []
    for group in ("qk", "vo"):
        gates += [dims_gate(scope, b, group, shared=False) for b in scope.attentions(group)]
    gates += [heads_gate(scope, branch) for branch in scope.attentions("heads")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    return gates + width_gates(scope)
