"""Translation between a host's attention layers and MLPs and the canonical weights.

Legend: D residual width, H heads, K query/key dims per head, V value dims per head, F hidden.
"""

from functools import partial

import torch
from torch import Tensor, nn

from secateur.models.derived.names import linear, optional, parameter, stands_at
from secateur.models.modules import Rotate, SlimAttention
from secateur.models.statement import AttentionLayer, Holds, MlpLayer, Packed, Separate
from secateur.models.types import AttentionShape, MlpShape, Shape
from secateur.models.weights import AttentionWeights, MlpWeights

Biases = tuple[Tensor | None, Tensor | None, Tensor | None]


def out_of(attn: nn.Module, layer: AttentionLayer) -> str:
    """Path of the output projection."""
    return "proj" if isinstance(attn, SlimAttention) else layer.out


def norms_of_qk(attn: nn.Module, layer: AttentionLayer) -> tuple[str, ...]:
    """Paths of the norms of queries and keys."""
    return ("q_norm", "k_norm") if isinstance(attn, SlimAttention) else layer.qk_norm or ()


def attention_shape(attn: nn.Module, layer: AttentionLayer) -> AttentionShape:
    """Sizes of an attention layer, from its weights."""
    if isinstance(attn, SlimAttention):
        return AttentionShape(heads=attn.num_heads, qk=attn.qk_dim, vo=attn.v_dim)
    heads, all_vo = int(getattr(attn, layer.heads)), linear(attn, layer.out).weight.shape[1]
    if isinstance(layer.qkv, Separate):
        all_qk = linear(attn, layer.qkv.q).weight.shape[0]
    else:
        all_qk = (_weight(attn, layer.qkv).shape[0] - all_vo) // 2
    return AttentionShape(heads=heads, qk=all_qk // heads, vo=all_vo // heads)


def attention_weights(attn: nn.Module, layer: AttentionLayer) -> AttentionWeights:
    """The layer in canonical layout; views of its parameters where it packs them by head."""
    shape, own = attention_shape(attn, layer), isinstance(attn, SlimAttention)
    h, qkv, bias = shape.heads, Packed() if own else layer.qkv, layer.position_bias
    sizes = [shape.qk, shape.qk, shape.vo]
    parts: list[Tensor]
    if isinstance(qkv, Separate):
        linears = [linear(attn, path) for path in (qkv.q, qkv.k, qkv.v)]
        parts = [lin.weight.detach().unflatten(0, (h, -1)) for lin in linears]
        biases = [_by_head(lin.bias, h) for lin in linears]
    else:
        parts = _split(_weight(attn, qkv).detach(), qkv, h, sizes)
        biases = _packed_biases(attn, qkv, h, sizes)
    out, scale = linear(attn, out_of(attn, layer)), "scale" if own else layer.scale
    table = parameter(attn, None if bias is None else bias.table)
    return AttentionWeights(
        q_HKD=parts[0],
        k_HKD=parts[1],
        v_HVD=parts[2],
        o_DHV=out.weight.detach().unflatten(1, (h, shape.vo)),
        qb_HK=biases[0],
        kb_HK=biases[1],
        vb_HV=biases[2],
        ob_D=_detached(out.bias),
        scale=shape.qk**-0.5 if scale is None else float(getattr(attn, scale)),
        table_HT=None if table is None or bias is None else table.detach().movedim(bias.heads, 0),
        places_NN=None if table is None or bias is None else attn.get_buffer(bias.index),
    )


def assign_attention_(
    attn: nn.Module, layer: AttentionLayer, weights: AttentionWeights, *, fused: bool
) -> nn.Module:
    """An attention layer with copies of these weights: the host's own where it holds the shape.

    `fused` says whether one of ours, where that is needed, starts with the fused kernel.
    """
    if isinstance(attn, SlimAttention) or not _fits(attn, layer, weights):
        return our_attention(attn, layer, weights, fused=fused)
    qkv, sizes = layer.qkv, _sizes(weights.shape)
    parts, biases = _parts(weights)
    if isinstance(qkv, Separate):
        for path, part, bias in zip((qkv.q, qkv.k, qkv.v), parts, biases, strict=True):
            flat = None if bias is None else bias.flatten()
            assign_layer_(linear(attn, path), part.flatten(0, 1), flat)
    else:
        _assign(attn, qkv.weight, _joined(parts, by_head=qkv.by_head))
        if isinstance(qkv.bias, str):
            present = [bias for bias in biases if bias is not None]
            _assign(attn, qkv.bias, _joined(present, by_head=qkv.by_head) if present else None)
        apart = qkv.bias if isinstance(qkv.bias, tuple) else (None, None, None)
        for name, bias in zip(apart, biases, strict=True):
            if name is not None and bias is not None:
                _assign(attn, name, bias.flatten())
        if isinstance(module := stands_at(attn, qkv.weight.rpartition(".")[0]), nn.Linear):
            module.out_features, module.in_features = module.weight.shape
    assign_layer_(linear(attn, layer.out), weights.o_DHV.flatten(1), weights.ob_D)
    if layer.position_bias is not None and weights.table_HT is not None:
        table = weights.table_HT.movedim(0, layer.position_bias.heads)
        _assign(attn, layer.position_bias.table, table)
    for name, size in {layer.heads: "heads", **layer.sizes}.items():
        setattr(attn, name, sizes[size])
    return attn


def shape_of(module: nn.Module, layer: AttentionLayer | MlpLayer) -> Shape:
    """Sizes of a layer."""
    if isinstance(layer, MlpLayer):
        return mlp_shape(module, layer)
    return attention_shape(module, layer)


def mlp_shape(mlp: nn.Module, layer: MlpLayer) -> MlpShape:
    """Hidden neurons of an MLP."""
    return MlpShape(hidden=linear(mlp, layer.writer).weight.shape[1])


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
    rows, columns = weight.shape
    old = layer.get_parameter("weight")
    if isinstance(layer, nn.Conv2d):
        weight = weight[:, :, None, None]
        layer.in_channels, layer.out_channels = columns, rows
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = columns, rows
    layer.register_parameter("weight", _parameter(weight, old))
    layer.register_parameter("bias", None if bias is None else _parameter(bias, old))


def _fits(attn: nn.Module, layer: AttentionLayer, weights: AttentionWeights) -> bool:
    """Whether the host's own class computes this shape, and has a place for each bias."""
    shape, present = weights.shape, attention_shape(attn, layer)
    held = {
        Holds.NOTHING: shape == present,
        Holds.HEADS: shape.qk == shape.vo == present.qk == present.vo,
        Holds.EQUAL_DIMS: shape.qk == shape.vo,
        Holds.ALL: True,
    }
    return held[layer.holds]


def our_attention(
    attn: nn.Module, layer: AttentionLayer, weights: AttentionWeights, *, fused: bool
) -> nn.Module:
    """Our own attention in place of a host's layer, or of one of ours in another shape."""
    shape, own = weights.shape, isinstance(attn, SlimAttention)
    out = linear(attn, out_of(attn, layer))
    q_norm, k_norm = norms_of_qk(attn, layer) or (None, None)
    slim = SlimAttention(
        dim=weights.q_HKD.shape[2],
        num_heads=shape.heads,
        qk_dim=shape.qk,
        v_dim=shape.vo,
        scale=weights.scale,
        dim_out=weights.o_DHV.shape[0],
        q_norm=optional(attn, q_norm),
        k_norm=optional(attn, k_norm),
        attn_drop=_chance(attn, "attn_drop" if own else layer.dropout),
        proj_drop=_chance(attn, "proj_drop" if own else layer.dropout_behind),
        fused_attn=fused,
        call=layer.call,
        rotary=_rotation(attn, layer),
        device=torch.device("meta"),
    )
    like = out.weight
    for linear_, weight, bias in (
        (slim.qkv, torch.cat([p.flatten(0, 1) for p in _parts(weights)[0]]), _fused_bias(weights)),
        (slim.proj, weights.o_DHV.flatten(1), weights.ob_D),
    ):
        linear_.weight = _parameter(weight, like)
        linear_.register_parameter("bias", None if bias is None else _parameter(bias, like))
    return slim.train(attn.training)


def _rotation(attn: nn.Module, layer: AttentionLayer) -> tuple[str, Rotate] | None:
    """Under which argument rotary embeddings come, and the function that applies them."""
    if isinstance(attn, SlimAttention) or layer.rotary is None:
        return attn.rotary if isinstance(attn, SlimAttention) else None
    settings = {name: getattr(attn, name) for name in layer.rotary.settings}
    return layer.rotary.argument, partial(layer.rotary.apply, **settings)


def _parts(weights: AttentionWeights) -> tuple[list[Tensor], Biases]:
    biases = (weights.qb_HK, weights.kb_HK, weights.vb_HV)
    return [weights.q_HKD, weights.k_HKD, weights.v_HVD], biases


def _fused_bias(weights: AttentionWeights) -> Tensor | None:
    """One vector for q, k and v, zero where one of them has no bias; None where none has."""
    parts, biases = _parts(weights)
    if all(bias is None for bias in biases):
        return None
    pairs = zip(parts, biases, strict=True)
    return torch.cat([(p[..., 0] * 0 if b is None else b).flatten() for p, b in pairs])


def _sizes(shape: AttentionShape) -> dict[str, int]:
    h, k, v = shape.heads, shape.qk, shape.vo
    return {"heads": h, "qk": k, "vo": v, "all_qk": h * k, "all_vo": h * v}


def _joined(parts: list[Tensor], *, by_head: bool) -> Tensor:
    return (
        torch.cat(parts, 1).flatten(0, 1)
        if by_head
        else torch.cat([p.flatten(0, 1) for p in parts])
    )


def _split(fused: Tensor, qkv: Packed, heads: int, sizes: list[int]) -> list[Tensor]:
    if qkv.by_head:
        return list(fused.unflatten(0, (heads, sum(sizes))).split(sizes, 1))
    return [t.unflatten(0, (heads, -1)) for t in fused.split([heads * size for size in sizes])]


def _packed_biases(
    attn: nn.Module, qkv: Packed, heads: int, sizes: list[int]
) -> list[Tensor | None]:
    if isinstance(qkv.bias, tuple):
        return [_by_head(parameter(attn, path), heads) for path in qkv.bias]
    fused = parameter(attn, qkv.bias)
    return [None] * 3 if fused is None else [*_split(fused.detach(), qkv, heads, sizes)]


def _weight(attn: nn.Module, qkv: Packed) -> Tensor:
    owner, _, _ = qkv.weight.rpartition(".")
    return linear(attn, owner).weight if owner else attn.get_parameter(qkv.weight)


def _by_head(bias: Tensor | None, heads: int) -> Tensor | None:
    return None if bias is None else bias.detach().unflatten(0, (heads, -1))


def _chance(attn: nn.Module, path: str | None) -> float:
    found = stands_at(attn, path)
    chance = getattr(found, "p", found)
    return float(chance) if isinstance(chance, int | float) else 0.0


def _assign(owner: nn.Module, path: str, value: Tensor | None) -> None:
    module, _, name = path.rpartition(".")
    holder = owner.get_submodule(module)
    like = next(owner.parameters())
    holder.register_parameter(name, None if value is None else _parameter(value, like))


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(_copy(value, like), like.requires_grad)


def _copy(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().to(like.dtype, copy=True).contiguous()


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
