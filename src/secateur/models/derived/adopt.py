"""Put our attention in the place of layers that compute past their modules, unseen by hooks.

The outputs stay the same; queries, keys and values then pass a module of their own.
Legend: H heads, T entries of a table, N tokens.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from secateur.errors import UserError
from secateur.models.derived.layout import attention_weights, our_attention, position_biases
from secateur.models.derived.names import is_fused, optional
from secateur.models.derived.steps import Step, steps_of
from secateur.models.statement import AttentionLayer, Statement, TabulatedBias


def unseen_in(stated: Statement, model: nn.Module) -> list[Step]:
    """The attention layers of a model that hooks cannot see into."""
    return [step for step in steps_of(stated, model) if step.unseen]


@torch.no_grad()
def adopt_(stated: Statement, model: nn.Module, names: Collection[str] | None = None) -> None:
    """Put ours in place of each such layer, or of those whose own tensors are not all in `names`.

    UserError for a layer that ours cannot take the place of.
    """
    shared: set[str] = set()
    for step in unseen_in(stated, model):
        layer, module = step.layer, step.module
        assert isinstance(layer, AttentionLayer)
        if names is not None and all(f"{step.path}.{key}" in names for key in module.state_dict()):
            continue
        if optional(module, layer.gate) is not None:
            raise UserError(
                f"{step.path} is a {type(module).__name__} with a gate that multiplies with its "
                "weights past the modules that hold them, so its queries, keys and values cannot "
                "be observed."
            )
        weights, biases = attention_weights(module, layer), layer.position_bias
        if isinstance(biases, TabulatedBias) and (common := optional(model, biases.shared)):
            table_HT, places_NN = position_biases(common, biases)
            if table_HT is not None and weights.table_HT is not None:
                table_HT = table_HT + weights.table_HT
            weights = replace(weights, table_HT=table_HT, places_NN=places_NN)
            shared.add(str(biases.shared))
        fused = is_fused(module, stated.fused)
        put_(stated, model, step.path, our_attention(module, layer, weights, fused=fused))
    for path in shared:
        setattr(model, path, None)


def put_(stated: Statement, model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in place of another, with the hooks by which the host records outputs."""
    if stated.record is not None:
        stated.record(model, path)
        hooks = model.get_submodule(path)._forward_hooks
        new._forward_hooks.update({key: hook for key, hook in hooks.items() if not _is_ours(hook)})
    model.set_submodule(path, new)


def _is_ours(hook: object) -> bool:
    return str(getattr(hook, "__module__", "secateur")).startswith("secateur")
