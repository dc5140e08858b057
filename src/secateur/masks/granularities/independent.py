"""Every output of every linear layer for itself."""

from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import free_dims_gate, hidden_gate, rows_gate


@sharing(
    "independent",
    title="Every output of every linear layer has a mask of its own",
    removal=(
        "Neurons go as masked. A query/key dim goes where either is masked. Heads keep as many "
        "dims as the widest, the others padded with zeros. Outputs of proj and fc2 stay: other "
        "layers write to the same channels."
    ),
    groups=("qk", "vo", "hidden", "branch"),
)
def independent(scope: Scope) -> list[Gate]:
    """Scores of q, k, v, proj, fc1 and fc2, none shared."""
    gates = []
    for branch in scope.attentions("qk"):
        gates += [free_dims_gate(scope, branch, site, "qk") for site in ("query", "key")]
    gates += [free_dims_gate(scope, branch, "context", "vo") for branch in scope.attentions("vo")]
    gates += [hidden_gate(scope, branch) for branch in scope.mlps()]
    gates += [
        rows_gate(scope, branch)
        for branch in scope.anatomy.branches
        if branch.id in scope.linear and scope.has(branch, "branch")
    ]
    return gates
