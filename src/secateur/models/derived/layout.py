"""Translation between a host's attention layers and MLPs and the canonical weights.

Legend: D residual width, H heads, K query/key dims per head, V value dims per head, F hidden.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.models.derived.names import linear, optional, parameter, stands_at
from secateur.models.modules import KeylessLinear, SlimAttention
from secateur.models.statement import (
    AttentionLayer,
    Holds,
    MlpLayer,
    Packed,
    PositionBias,
    Separate,
    TabulatedBias,
)
from secateur.models.types import AttentionShape, MlpShape
from secateur.models.weights import AttentionWeights, MlpWeights

Parts = tuple[int, ...]


def ours(layer: AttentionLayer, own: SlimAttention) -> AttentionLayer:
    """The facts of the attention of ours that took the place of a host's layer."""
    keyless = isinstance(own.qkv, KeylessLinear)
    table = PositionBias(table="position_table", index=own.index)
    return replace(
        layer,
        qkv=Packed(bias=("qkv.bias", None, "qkv.bias")) if keyless else Packed(),
        out="proj",
        heads="num_heads",
        scale="scale",
        sizes={"qk_dim": "qk", "v_dim": "vo"},
        qk_norm=("q_norm", "k_norm"),
        context_norm="norm",
        gate=None,
        position_bias=None if own.position_table is None else table,
        holds=Holds.ALL,
    )


def shape_of(module: nn.Module, layer: AttentionLayer | MlpLayer) -> AttentionShape | MlpShape:
    """Sizes of a layer, from its weights."""
    if isinstance(layer, MlpLayer):
        return MlpShape(hidden=linear(module, layer.writer).weight.shape[1])
    return attention_shape(module, layer)


def held_in(qkv: Packed | Separate, what: Literal["weight", "bias"]) -> dict[str, Parts]:
    """Paths of parameters, each with which of queries (0), keys (1) and values (2) it holds."""
    names: tuple[str | None, ...]
    if isinstance(qkv, Separate):
        names = tuple(f"{name}.{what}" for name in (qkv.q, qkv.k, qkv.v))
    elif isinstance(found := qkv.weight if what == "weight" else qkv.bias, str):
        return {found: (0, 1, 2)}
    else:
        names = found
    return {
        name: tuple(part for part, other in enumerate(names) if other == name)
        for name in names
        if name is not None
    }


def attention_shape(attn: nn.Module, layer: AttentionLayer) -> AttentionShape:
    """Sizes of an attention layer, from its weights."""
    heads, rows = int(getattr(attn, layer.heads)), 0
    for path in held_in(layer.qkv, "weight"):
        owner = path.rpartition(".")[0]
        rows += (linear(attn, owner).weight if owner else attn.get_parameter(path)).shape[0]
    all_vo = linear(attn, layer.out).weight.shape[1]
    return AttentionShape(heads=heads, qk=(rows - all_vo) // 2 // heads, vo=all_vo // heads)


def attention_weights(
    attn: nn.Module, layer: AttentionLayer, holder: nn.Module | None = None
) -> AttentionWeights:
    """The layer in canonical layout, views where it can; `holder` has the biases of its logits."""
    shape, out = attention_shape(attn, layer), linear(attn, layer.out)
    weights = _parts(attn, layer.qkv, "weight", shape)
    biases = _parts(attn, layer.qkv, "bias", shape)
    table, places = position_biases(holder or attn, layer.position_bias)
    return AttentionWeights(
        q_HKD=weights[0],
        k_HKD=weights[1],
        v_HVD=weights[2],
        o_DHV=out.weight.detach().unflatten(1, (shape.heads, shape.vo)),
        qb_HK=biases.get(0),
        kb_HK=biases.get(1),
        vb_HV=biases.get(2),
        ob_D=_detached(out.bias),
        scale=shape.qk**-0.5 if layer.scale is None else float(getattr(attn, layer.scale)),
        table_HT=table,
        places_NN=places,
    )


@torch.no_grad()
def position_biases(
    module: nn.Module, stated: PositionBias | TabulatedBias | None
) -> tuple[Tensor | None, Tensor | None]:
    """A table (H, T) of biases of the logits, and the entry of each pair of tokens (N, N)."""
    if isinstance(stated, TabulatedBias):
        return stated.read(module) or (None, None)
    if stated is None or (found := parameter(module, stated.table)) is None:
        return None, None
    return found.detach().movedim(stated.heads, 0), module.get_buffer(stated.index)


def assign_attention_(
    attn: nn.Module, layer: AttentionLayer, weights: AttentionWeights, *, fused: bool
) -> nn.Module:
    """An attention layer with copies of these weights: the host's own where it holds the shape.

    `fused` says whether one of ours, where that is needed, starts with the fused kernel.
    """
    shape, dense = weights.shape, attention_shape(attn, layer)
    held = {
        Holds.NOTHING: shape == dense,
        Holds.HEADS: shape.qk == shape.vo == dense.qk == dense.vo,
        Holds.EQUAL_DIMS: shape.qk == shape.vo,
        Holds.ALL: True,
    }
    if not held[layer.holds]:
        return our_attention(attn, layer, weights, fused=fused)
    _write_(attn, layer, weights)
    return attn


def our_attention(
    attn: nn.Module, layer: AttentionLayer, weights: AttentionWeights, *, fused: bool
) -> nn.Module:
    """Our own attention in place of a host's layer."""
    shape, like, rotary = weights.shape, linear(attn, layer.out).weight, layer.rotary
    q_norm, k_norm = layer.qk_norm or (None, None)
    biases = [weights.qb_HK is not None, weights.kb_HK is not None, weights.vb_HV is not None]
    table = weights.table_HT
    settings = {} if rotary is None else {name: getattr(attn, name) for name in rotary.settings}
    slim = SlimAttention(
        dim=weights.q_HKD.shape[2],
        num_heads=shape.heads,
        qk_dim=shape.qk,
        v_dim=shape.vo,
        scale=weights.scale,
        dim_out=weights.o_DHV.shape[0],
        key_bias=biases != [True, False, True],
        q_norm=optional(attn, q_norm),
        k_norm=optional(attn, k_norm),
        context_norm=optional(attn, layer.context_norm),
        entries=0 if table is None else table.shape[1],
        places_NN=weights.places_NN,
        index=getattr(layer.position_bias, "index", "position_index").rpartition(".")[2],
        attn_drop=_chance(attn, layer.dropout),
        proj_drop=_chance(attn, layer.dropout_behind),
        fused_attn=fused,
        call=layer.call,
        rotary=None if rotary is None else (rotary.argument, partial(rotary.apply, **settings)),
        relative=None if layer.relative is None else (layer.relative, attn),
        device=torch.device("meta"),
        dtype=like.dtype,
    )
    for projection in (slim.qkv, slim.proj):
        projection.requires_grad_(like.requires_grad)
    _write_(slim, ours(layer, slim), weights)
    return slim.train(attn.training)


def _write_(attn: nn.Module, layer: AttentionLayer, weights: AttentionWeights) -> None:
    """Put copies of these weights into a layer that holds their shape."""
    parts = (weights.q_HKD, weights.k_HKD, weights.v_HVD)
    biases = (weights.qb_HK, weights.kb_HK, weights.vb_HV)
    by_head, shape = layer.qkv.by_head, weights.shape
    for path, held in held_in(layer.qkv, "weight").items():
        _assign_(attn, path, _joined([parts[part] for part in held], by_head=by_head))
    for path, held in held_in(layer.qkv, "bias").items():
        own = [(biases[part], parts[part]) for part in held]
        # WHY: one vector for all three holds zeros for those of them that have no bias.
        filled = [weight[..., 0] * 0 if bias is None else bias for bias, weight in own]
        lacking = all(bias is None for bias, _ in own)
        _assign_(attn, path, None if lacking else _joined(filled, by_head=by_head))
    assign_layer_(linear(attn, layer.out), weights.o_DHV.flatten(1), weights.ob_D)
    if isinstance(layer.position_bias, PositionBias) and weights.table_HT is not None:
        table = weights.table_HT.movedim(0, layer.position_bias.heads)
        _assign_(attn, layer.position_bias.table, table)
    h, k, v = shape.heads, shape.qk, shape.vo
    sizes = {"heads": h, "qk": k, "vo": v, "all_qk": h * k, "all_vo": h * v}
    for name, size in {layer.heads: "heads", **layer.sizes}.items():
        setattr(attn, name, sizes[size])


def mlp_weights(mlp: nn.Module, layer: MlpLayer) -> MlpWeights:
    """The layer in canonical layout; a packed gate is split into two readers."""
    writer, norm = linear(mlp, layer.writer), optional(mlp, layer.unit_norm)
    hidden = writer.weight.shape[1]
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for reader in (linear(mlp, name) for name in layer.readers):
        parts = reader.weight.detach().flatten(1).split(hidden)
        weights += parts
        bias = _detached(reader.bias)
        biases += [None] * len(parts) if bias is None else bias.split(hidden)
    columns = [] if norm is None else [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    units = [column.detach() for column in columns if isinstance(column, Tensor)]
    return MlpWeights(
        readers_FD=tuple(weights),
        reader_biases_F=tuple(biases),
        w2_DF=writer.weight.detach().flatten(1),
        b2_D=_detached(writer.bias),
        unit_FT=torch.stack(units, 1) if units else None,
    )


def assign_mlp_(mlp: nn.Module, layer: MlpLayer, weights: MlpWeights) -> None:
    """Give the MLP copies of these weights in place; its class stays."""
    each = len(weights.readers_FD) // len(layer.readers)
    for number, name in enumerate(layer.readers):
        own = slice(number * each, (number + 1) * each)
        present = [bias for bias in weights.reader_biases_F[own] if bias is not None]
        bias = torch.cat(present) if present else None
        assign_layer_(linear(mlp, name), torch.cat(weights.readers_FD[own]), bias)
    assign_layer_(linear(mlp, layer.writer), weights.w2_DF, weights.b2_D)
    norm = optional(mlp, layer.unit_norm)
    if isinstance(norm, nn.BatchNorm2d) and weights.unit_FT is not None:
        scale_F, shift_F, mean_F, var_F = weights.unit_FT.unbind(1)
        norm.num_features = weights.shape.hidden
        norm.weight, norm.bias = _parameter(scale_F, norm.weight), _parameter(shift_F, norm.bias)
        norm.running_mean, norm.running_var = (_copy(t, norm.weight) for t in (mean_F, var_F))


def assign_layer_(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a Linear or 1x1 convolution copies of a matrix and a bias, in its own type."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = weight.shape
        weight = weight[:, :, None, None]
    _assign_(layer, "weight", weight)
    _assign_(layer, "bias", bias)


def _parts(
    attn: nn.Module,
    qkv: Packed | Separate,
    what: Literal["weight", "bias"],
    shape: AttentionShape,
) -> dict[int, Tensor]:
    """Queries (0), keys (1) and values (2) from parameters, each with a first axis of heads."""
    heads, sizes = shape.heads, (shape.qk, shape.qk, shape.vo)
    found: dict[int, Tensor] = {}
    for path, held in held_in(qkv, what).items():
        rows = stands_at(attn, path)
        if not isinstance(rows, Tensor):
            continue
        each = [sizes[part] for part in held]
        if qkv.by_head:
            parts = rows.detach().unflatten(0, (heads, sum(each))).split(each, 1)
        else:
            blocks = rows.detach().split([heads * size for size in each])
            parts = tuple(block.unflatten(0, (heads, -1)) for block in blocks)
        found.update(zip(held, parts, strict=True))
    return found


def _joined(parts: list[Tensor], *, by_head: bool) -> Tensor:
    if by_head:
        return torch.cat(parts, 1).flatten(0, 1)
    return torch.cat([part.flatten(0, 1) for part in parts])


def _chance(attn: nn.Module, path: str | None) -> float:
    found = stands_at(attn, path)
    chance = getattr(found, "p", found)
    return float(chance) if isinstance(chance, int | float) else 0.0


def _assign_(owner: nn.Module, path: str, value: Tensor | None) -> None:
    """Put a copy of a tensor in place of a parameter, in the type of its module."""
    module, _, name = path.rpartition(".")
    holder = owner.get_submodule(module)
    new = None if value is None else _parameter(value, next(holder.parameters()))
    setattr(holder, name, new)
    if isinstance(holder, nn.Linear) and name == "weight" and value is not None:
        holder.out_features, holder.in_features = value.shape


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(_copy(value, like), like.requires_grad)


def _copy(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().to(like.dtype, copy=True).contiguous()


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
