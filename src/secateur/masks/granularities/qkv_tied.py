"""One mask for queries, keys and values of a head."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import hidden_gate, tied_dims_gate, width_gates


@sharing(
    "qkv_tied",
    title="Query, key and value of a head share one mask; neurons have their own",
    removal="Everything masked goes: heads choose their own dims, equally many.",
    groups=("qk", "vo", "hidden"),
)
def qkv_tied(scope: Scope) -> list[Gate]:
    """As in ViT-Slim (CVPR 2022), but with equally many dims per head."""
    gates = [tied_dims_gate(scope, branch) for branch in scope.attentions("qk", "vo")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    return gates + width_gates(scope)
