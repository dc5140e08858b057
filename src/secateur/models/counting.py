"""Prices of a plain ViT's parts: parameters and multiply-accumulates for one image.

MACs count matrix products only, with the two attention products QK^T and AV; norms,
activations, biases and softmax are left out, as is the convention.
Legend: D residual width, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from collections.abc import Iterable
from typing import TypedDict

from timm.layers import AttentionPoolPrr
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.models.places import AnyAttention, AnyMlp, linear, readers
from secateur.models.types import AttentionShape, Cost, Rate


class Prices(TypedDict, total=False):
    """The rates of a `Branch`."""

    fixed: Rate
    per_head: Rate
    per_qk: Rate
    per_qk_layer: Rate
    per_vo: Rate
    per_hidden: Rate


def parameters(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(p.numel() for p in module.parameters())


def _per_width(modules: Iterable[nn.Module], width: int) -> int:
    """Parameters per residual channel of modules that hold only (D,) vectors."""
    return sum(parameters(m) for m in modules) // width


def attention_rates(
    attn: AnyAttention, shape: AttentionShape, norms: list[nn.Module], tokens: int
) -> Prices:
    """The `Branch` prices of a fused-qkv attention layer with its norm and LayerScale."""
    n, width = tokens, attn.proj.out_features
    bias_in = int(attn.qkv.bias is not None)
    bias_out = int(attn.proj.bias is not None)
    qk_norm = (parameters(attn.q_norm) + parameters(attn.k_norm)) // shape.qk
    gate: nn.Module = getattr(attn, "gate", None) or nn.Identity()
    scale_norm: nn.Module = getattr(attn, "norm", nn.Identity())
    gates = gate.out_features if isinstance(gate, nn.Linear) else 0
    gate_bias = parameters(gate) - gates * width
    return {
        "fixed": Rate(
            base=Cost(params=gate_bias + parameters(scale_norm)),
            per_width=Cost(params=_per_width(norms, width) + bias_out + gates, macs=n * gates),
        ),
        "per_qk": Rate(
            base=Cost(params=2 * bias_in, macs=n * n), per_width=Cost(params=2, macs=2 * n)
        ),
        "per_qk_layer": Rate(base=Cost(params=qk_norm)),
        "per_vo": Rate(base=Cost(params=bias_in, macs=n * n), per_width=Cost(params=2, macs=2 * n)),
    }


def mlp_rates(mlp: AnyMlp, norms: list[nn.Module], tokens: int) -> Prices:
    """The `Branch` prices of an MLP with one reader (fc1) or two (gated), norm and LayerScale."""
    writer = linear(mlp, "fc2")
    width, hidden = writer.out_features, writer.in_features
    rows = sum(r.out_features for r in readers(mlp)) // hidden
    bias_in = sum(r.bias.numel() for r in readers(mlp) if r.bias is not None) // hidden
    inner = parameters(mlp.norm) // hidden
    return {
        "fixed": Rate(
            per_width=Cost(params=_per_width(norms, width) + int(writer.bias is not None))
        ),
        "per_hidden": Rate(
            base=Cost(params=bias_in + inner),
            per_width=Cost(params=rows + 1, macs=tokens * (rows + 1)),
        ),
    }


def vit_ends(vit: VisionTransformer, tokens: int, params: int) -> Rate:
    """Everything of a timm VisionTransformer that is not a branch; `params` is its exact count."""
    width = vit.embed_dim
    heads = [vit.head, getattr(vit, "head_dist", None)]
    classifiers = [head for head in heads if isinstance(head, nn.Linear)]
    pool_params, pool_macs = _attention_pool(vit, tokens)
    fixed = sum(h.bias.numel() for h in classifiers if h.bias is not None) + pool_params
    patches, kernel = int(vit.patch_embed.num_patches), vit.patch_embed.proj.weight[0].numel()
    macs = patches * kernel + sum(head.out_features for head in classifiers)
    per_width = (params - fixed) // width
    return Rate(
        base=Cost(params=params - per_width * width, macs=pool_macs),
        per_width=Cost(params=per_width, macs=macs),
    )


def _attention_pool(vit: VisionTransformer, tokens: int) -> tuple[int, int]:
    """Parameters and MACs of a pooling head that attends (SigLIP), (0, 0) without one."""
    pool: nn.Module | None = vit.attn_pool
    if pool is None:
        return 0, 0
    seen = tokens if vit.pool_include_prefix else tokens - vit.num_prefix_tokens
    # One latent query attends to all tokens, or (PRR) each token does.
    queries = seen if isinstance(pool, AttentionPoolPrr) else 1
    macs = 2 * queries * seen * vit.embed_dim
    for name, module in pool.named_modules():
        if isinstance(module, nn.Linear):
            macs += module.weight.numel() * (seen if name.endswith("kv") else 1)
    return parameters(pool), macs
