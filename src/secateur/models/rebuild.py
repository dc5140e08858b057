"""Translation between timm-style attention and MLP modules and the canonical weights.

Legend: D residual width, H heads, K query/key dims per head, V value dims per head, F hidden.
"""

import torch
from timm.layers import SwiGLU
from timm.layers.attention import Attention
from torch import Tensor, nn

from secateur.models.modules import SlimAttention
from secateur.models.places import AnyAttention, AnyMlp, linear, readers
from secateur.models.types import AttentionShape
from secateur.models.weights import AttentionWeights, MlpWeights


def attention_weights(attn: AnyAttention, shape: AttentionShape) -> AttentionWeights:
    """Split a fused qkv (rows [q|k|v], each by head) and its projection into canonical layout."""
    h, k, v = shape.heads, shape.qk, shape.vo
    qkv, proj = linear(attn, "qkv"), linear(attn, "proj")
    wq, wk, wv = qkv.weight.detach().split([h * k, h * k, h * v])
    biases: list[Tensor | None] = [None, None, None]
    if qkv.bias is not None:
        biases = list(qkv.bias.detach().split([h * k, h * k, h * v]))
    return AttentionWeights(
        q_HKD=wq.unflatten(0, (h, k)),
        k_HKD=wk.unflatten(0, (h, k)),
        v_HVD=wv.unflatten(0, (h, v)),
        o_DHV=proj.weight.detach().unflatten(1, (h, v)),
        qb_HK=_by_head(biases[0], h),
        kb_HK=_by_head(biases[1], h),
        vb_HV=_by_head(biases[2], h),
        ob_D=_detached(proj.bias),
        scale=float(attn.scale),
    )


def mlp_weights(mlp: AnyMlp) -> MlpWeights:
    """Readers of fc1, of the two halves of a packed gated fc1, or of fc1_g and fc1_x."""
    writer = linear(mlp, "fc2")
    hidden = writer.in_features
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for reader in readers(mlp):
        halves = reader.out_features // hidden
        weights += reader.weight.detach().split(hidden)
        bias = _detached(reader.bias)
        biases += [None] * halves if bias is None else bias.split(hidden)
    return MlpWeights(
        readers_FD=tuple(weights),
        reader_biases_F=tuple(biases),
        w2_DF=writer.weight.detach(),
        b2_D=_detached(writer.bias),
    )


def assign_attention_(attn: AnyAttention, weights: AttentionWeights) -> nn.Module:
    """Return an attention module with these weights: the host's own class if it fits.

    timm's Attention has one head width, from which its fused kernel derives the softmax scale,
    so it fits as long as only whole heads were removed.
    """
    shape = weights.shape
    like = attn.qkv
    rows = [w.flatten(0, 1) for w in (weights.q_HKD, weights.k_HKD, weights.v_HVD)]
    qkv = _linear(torch.cat(rows), _fused_bias(weights), like)
    proj = _linear(weights.o_DHV.flatten(1), weights.ob_D, attn.proj)
    if isinstance(attn, Attention) and shape.qk == shape.vo == attn.head_dim:
        attn.num_heads = shape.heads
        attn.attn_dim = shape.heads * shape.vo
        attn.qkv, attn.proj = qkv, proj
        return attn
    slim = SlimAttention(
        dim=like.in_features,
        num_heads=shape.heads,
        qk_dim=shape.qk,
        v_dim=shape.vo,
        scale=weights.scale,
        dim_out=proj.out_features,
        q_norm=attn.q_norm,
        k_norm=attn.k_norm,
        attn_drop=attn.attn_drop.p,
        proj_drop=attn.proj_drop.p,
        fused_attn=attn.fused_attn,
        device=torch.device("meta"),
    )
    slim.qkv, slim.proj = qkv, proj
    return slim.train(attn.training)


def assign_mlp_(mlp: AnyMlp, weights: MlpWeights) -> None:
    """Give the MLP these weights in place; its class stays."""
    biases = weights.reader_biases_F
    if isinstance(mlp, SwiGLU):
        mlp.fc1_g = _linear(weights.readers_FD[0], biases[0], mlp.fc1_g)
        mlp.fc1_x = _linear(weights.readers_FD[1], biases[1], mlp.fc1_x)
    else:
        present = [b for b in biases if b is not None]
        bias = torch.cat(present) if present else None
        mlp.fc1 = _linear(torch.cat(weights.readers_FD), bias, linear(mlp, "fc1"))
    mlp.fc2 = _linear(weights.w2_DF, weights.b2_D, linear(mlp, "fc2"))


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _by_head(bias: Tensor | None, heads: int) -> Tensor | None:
    return None if bias is None else bias.unflatten(0, (heads, -1))


def _fused_bias(weights: AttentionWeights) -> Tensor | None:
    parts = (weights.qb_HK, weights.kb_HK, weights.vb_HV)
    present = [part.flatten() for part in parts if part is not None]
    return torch.cat(present) if present else None


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    """A Linear with copies of these tensors, in the type and with the gradients of `like`."""
    rows, columns = weight.shape
    new = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    dtype, grad = like.weight.dtype, like.weight.requires_grad
    new.weight = nn.Parameter(weight.detach().to(dtype, copy=True).contiguous(), grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().to(dtype, copy=True).contiguous(), grad)
    return new.train(like.training)
