"""Whole heads and neurons."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import heads_gate, hidden_gate, width_gates


@sharing(
    "per_head",
    title="All dims of a head share one mask; neurons have their own",
    removal="Everything masked goes; the layers keep the library's own classes.",
    groups=("heads", "hidden"),
)
def per_head(scope: Scope) -> list[Gate]:
    """One score per head, one per neuron."""
    gates = [heads_gate(scope, branch) for branch in scope.attentions("heads")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    return gates + width_gates(scope)
