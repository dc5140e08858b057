"""One mask per block."""

import torch

from secateur.masks.gates import Act, Gate
from secateur.masks.granularity import Scope, sharing
from secateur.masks.layout import (
    equal_dims,
    gate,
    hidden_gate,
    table,
    tied_dims_gate,
    width_gates,
)
from secateur.models.types import Branch


@sharing(
    "per_block",
    title="Attention and MLP of a block share one mask: a dim takes its share of the neurons along",
    removal="Everything masked goes, but all layers of a block keep the same share.",
    groups=("qk", "vo", "hidden"),
)
def per_block(scope: Scope) -> list[Gate]:
    """One score per dim of a head: query, key and value of it in all heads, and F / dims neurons.

    Blocks that offer only one of the two have the gates of `qkv_tied`.
    """
    dims = {branch.block: branch for branch in scope.attentions("qk", "vo")}
    neurons = {branch.block: branch for branch in scope.mlps()}
    gates = []
    for block in scope.anatomy.blocks:
        attention, mlp = dims.get(block.index), neurons.get(block.index)
        if attention is not None and mlp is not None:
            gates.append(_whole(scope, block.id, attention, mlp))
        elif attention is not None:
            gates.append(tied_dims_gate(scope, attention))
        elif mlp is not None:
            gates.append(hidden_gate(scope, mlp))
    return gates + width_gates(scope)


def _whole(scope: Scope, block_id: str, attention: Branch, mlp: Branch) -> Gate:
    heads, dims = attention.shape.size("heads"), equal_dims(attention)
    hidden = mlp.shape.size("hidden")
    same = table(1, dims).expand(heads, dims)
    owner_F = torch.arange(hidden) * dims // hidden
    acts = [
        Act(branch=attention.id, site="query", takes="qk", index=same),
        Act(branch=attention.id, site="key", takes="qk", index=same),
        Act(branch=attention.id, site="context", takes="vo", index=same),
        Act(branch=mlp.id, site="hidden", takes="hidden", index=owner_F),
    ]
    return gate(scope, f"{block_id}.all", "qk", 1, dims, acts, rule="equal")
