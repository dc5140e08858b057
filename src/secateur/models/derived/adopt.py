"""Put our attention in the place of layers that compute past their modules, unseen by hooks.

The outputs stay the same; queries, keys and values then pass a module of their own.
Legend: H heads, T entries of a table, N tokens.
"""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from secateur.errors import UserError
from secateur.models.derived.blocks import PartialBlock
from secateur.models.derived.layout import our_attention, position_biases
from secateur.models.derived.names import is_fused, optional
from secateur.models.derived.steps import Step, residuals_of, steps_of
from secateur.models.hook_points import keep_hooks_
from secateur.models.statement import AttentionLayer, Statement, TabulatedBias


def unseen_in(stated: Statement, model: nn.Module) -> list[Step]:
    """The attention layers of a model that hooks cannot see into."""
    return [step for step in steps_of(stated, model) if step.unseen]


@torch.no_grad()
def adopt_(stated: Statement, model: nn.Module, names: Collection[str] | None = None) -> None:
    """Put ours in place of each such layer, or of those whose own tensors are not all in `names`,
    with those of biases that layers share.

    UserError for a layer that ours cannot take the place of.
    """
    shared: set[str] = set()
    for step in unseen_in(stated, model):
        layer, module = step.layer, step.module
        assert isinstance(layer, AttentionLayer)
        own, biases = {step.path: module}, layer.position_bias
        if isinstance(biases, TabulatedBias) and (common := optional(model, biases.shared)):
            own[str(biases.shared)] = common
        tensors = [f"{path}.{key}" for path, held in own.items() for key in held.state_dict()]
        if names is not None and all(name in names for name in tensors):
            continue
        if optional(module, layer.gate) is not None:
            raise UserError(
                f"{step.path} is a {type(module).__name__} with a gate that multiplies with its "
                "weights past the modules that hold them, so its queries, keys and values cannot "
                "be observed."
            )
        weights = step.attention
        if isinstance(biases, TabulatedBias) and (common := optional(model, biases.shared)):
            table_HT, places_NN = position_biases(common, biases)
            if table_HT is not None and weights.table_HT is not None:
                table_HT = table_HT + weights.table_HT
            weights = replace(weights, table_HT=table_HT, places_NN=places_NN)
            shared.add(str(biases.shared))
        fused = is_fused(module, stated.fused)
        replace_attention_(stated, model, step, our_attention(module, layer, weights, fused=fused))
    _part_(stated, model)
    for path in shared:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, None)


def _part_(stated: Statement, model: nn.Module) -> None:
    """Put a block of ours in place of each whose updates pass no module of their own.

    Those are scaled by a bare parameter and pass a dropout that serves several steps.
    """
    steps = [step for step in steps_of(stated, model) if step.is_branch]
    for path in {step.block: None for step in steps if step.residual.drop_shared}:
        own = [step for step in steps if step.block == path]
        bare = [step for step in own if step.scale is not None and step.scale_module is None]
        if bare and not any(step.unseen for step in own):
            residuals = residuals_of(stated, path, own[0].owner)
            kept = [step.residual.path for step in own]
            put_(stated, model, path, PartialBlock(own[0].owner, residuals, kept))


def replace_attention_(stated: Statement, model: nn.Module, step: Step, new: nn.Module) -> None:
    """Put a layer in place of a host's attention; biases that stood beside that go with it."""
    layer, biases = step.layer, step.biases
    put_(stated, model, step.path, new)
    if biases is not None and isinstance(layer, AttentionLayer):
        assert isinstance(layer.position_bias, TabulatedBias)
        setattr(step.owner, str(layer.position_bias.beside), None)


def put_(stated: Statement, model: nn.Module, path: str, new: nn.Module) -> None:
    """Put a module in place of another, with its hooks, also those by which the host records."""
    if stated.record is not None:
        stated.record(model, path)
    keep_hooks_(new, model.get_submodule(path))
    model.set_submodule(path, new)
