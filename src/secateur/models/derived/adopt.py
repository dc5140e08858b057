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
    """Put ours in place of each such layer, or, where `names` are given, of those that they call
    for: layers of which some tensors are not among them, and ours would be.

    UserError for a layer that ours cannot take the place of.
    """
    shared: set[str] = set()
    found = unseen_in(stated, model) if names is None else _named_ours(stated, model, names)
    for step in found:
        layer, module = step.layer, step.module
        assert isinstance(layer, AttentionLayer)
        if optional(module, layer.gate) is not None:
            raise UserError(
                f"{step.path} is a {type(module).__name__} with a gate that multiplies with its "
                "weights past the modules that hold them, so its queries, keys and values cannot "
                "be observed."
            )
        weights, biases = step.attention, layer.position_bias
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


def _named_ours(stated: Statement, model: nn.Module, names: Collection[str]) -> list[Step]:
    """The attention layers that a model with tensors of these `names` does not have as its host."""
    return [
        step
        for step in steps_of(stated, model)
        if isinstance(step.layer, AttentionLayer)
        and not _tensors(model, step) <= set(names)
        # WHY: a layer that hooks see into became ours when it was cut unevenly, and stays so.
        and (step.unseen or _renamed(step, names))
    ]


def _tensors(model: nn.Module, step: Step) -> set[str]:
    """Names of a layer's tensors, and of those of biases that it shares with others."""
    held, biases = {step.path: step.module}, getattr(step.layer, "position_bias", None)
    if isinstance(biases, TabulatedBias) and (common := optional(model, biases.shared)):
        held[str(biases.shared)] = common
    return {f"{path}.{key}" for path, module in held.items() for key in module.state_dict()}


def _renamed(step: Step, names: Collection[str]) -> bool:
    """Whether a layer has ours in its place, under names that its own lacks."""
    ours = "qkv.weight"
    return f"{step.path}.{ours}" in names and ours not in step.module.state_dict()


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
