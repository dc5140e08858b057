"""Gradients of the loss with respect to a gate of value one on every unit.

For a unit with activations a (tokens) and gradients g, dL/dgate = sum over tokens of a*g, per
image (Molchanov et al., CVPR 2019, arXiv 1906.10771, eq. 7; Kwon et al., arXiv 2204.09656).
Legend: B batch, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from torch import Tensor

from secateur.statistics.known import per_image
from secateur.statistics.registry import Seen, Sums, add_, statistics_kind


def _add_gate_(sums: Sums, key: str, gate_BU: Tensor) -> None:
    """Add sums over images of dL/dgate, of its absolute value and of its square."""
    gate_BU = gate_BU.double()
    add_(sums, f"{key}_sum", gate_BU.sum(0))
    add_(sums, f"{key}_abs", gate_BU.abs().sum(0))
    add_(sums, f"{key}_square", gate_BU.square().sum(0))


def _per_image(seen: Seen, site: str) -> Tensor:
    """Sum over tokens of activation times gradient: (B, *units)."""
    return per_image((seen[site].float() * seen[f"{site}.grad"].float()).sum(1), seen, site)


@statistics_kind("mlp_gates", scope="mlp", sites=("hidden", "update"), gradient=True)
def mlp_gates(sums: Sums, seen: Seen) -> None:
    """Gates on hidden neurons (F,) and on the whole branch ()."""
    _add_gate_(sums, "hidden", _per_image(seen, "hidden"))
    _add_gate_(sums, "branch", _per_image(seen, "update").sum(-1))


@statistics_kind(
    "attention_gates", scope="attention", sites=("query", "context", "update"), gradient=True
)
def attention_gates(sums: Sums, seen: Seen) -> None:
    """Gates on query/key dims (H, K), value dims (H, V), heads (H,) and the branch ().

    A gate on a query dim acts on the product q*k, so it is the gate of the query/key pair.
    """
    vo_BHV = _per_image(seen, "context")
    _add_gate_(sums, "qk", _per_image(seen, "query"))
    _add_gate_(sums, "vo", vo_BHV)
    _add_gate_(sums, "heads", vo_BHV.sum(-1))
    _add_gate_(sums, "branch", _per_image(seen, "update").sum(-1))
