"""Prices of a plain ViT's parts: parameters and multiply-accumulates for one image.

MACs count matrix products only, with the two attention products QK^T and AV; norms,
activations, biases and softmax are left out, as is the convention.
Legend: D residual width, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateur.anatomy.types import AttentionShape, Cost, Rate


def parameters(module: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(p.numel() for p in module.parameters())


def _per_width(modules: Iterable[nn.Module | None], width: int) -> int:
    """Parameters per residual channel of modules that hold only (D,) vectors."""
    return sum(parameters(m) for m in modules if m is not None) // width


def attention_rates(
    attn: nn.Module, shape: AttentionShape, norms: list[nn.Module], tokens: int
) -> dict[str, Any]:
    """The `Branch` prices of a fused-qkv attention layer with its norm and LayerScale."""
    n, width = tokens, attn.proj.out_features
    bias_in = int(attn.qkv.bias is not None)
    bias_out = int(attn.proj.bias is not None)
    qk_norm = (parameters(attn.q_norm) + parameters(attn.k_norm)) // shape.qk
    extra = [getattr(attn, "gate", None), getattr(attn, "norm", None)]
    extra_params = sum(parameters(m) for m in extra if m is not None)
    gate_macs = n * extra[0].weight.numel() if extra[0] is not None else 0
    return {
        "fixed": Rate(
            base=Cost(params=extra_params, macs=gate_macs),
            per_width=Cost(params=_per_width(norms, width) + bias_out),
        ),
        "per_qk": Rate(
            base=Cost(params=2 * bias_in, macs=n * n), per_width=Cost(params=2, macs=2 * n)
        ),
        "per_qk_layer": Rate(base=Cost(params=qk_norm)),
        "per_vo": Rate(
            base=Cost(params=bias_in, macs=n * n), per_width=Cost(params=2, macs=2 * n)
        ),
    }


def mlp_rates(mlp: nn.Module, norms: list[nn.Module], tokens: int) -> dict[str, Any]:
    """The `Branch` prices of an MLP with one reader (fc1) or two (gated), norm and LayerScale."""
    width, hidden = mlp.fc2.out_features, mlp.fc2.in_features
    readers = [mlp.fc1_g, mlp.fc1_x] if hasattr(mlp, "fc1_g") else [mlp.fc1]
    rows = sum(r.out_features for r in readers) // hidden
    bias_in = sum(r.bias.numel() for r in readers if r.bias is not None) // hidden
    inner = parameters(mlp.norm) // hidden
    return {
        "fixed": Rate(
            per_width=Cost(
                params=_per_width(norms, width) + int(mlp.fc2.bias is not None),
            )
        ),
        "per_hidden": Rate(
            base=Cost(params=bias_in + inner),
            per_width=Cost(params=rows + 1, macs=tokens * (rows + 1)),
        ),
    }


def vit_ends(model: nn.Module, tokens: int, params: int) -> Rate:
    """Everything of a timm VisionTransformer that is not a branch; `params` is its exact count."""
    width = model.embed_dim
    heads = [model.head, getattr(model, "head_dist", None)]
    linear = [head for head in heads if isinstance(head, nn.Linear)]
    pool_params, pool_macs = _attention_pool(model, tokens)
    fixed = sum(h.bias.numel() for h in linear if h.bias is not None) + pool_params
    patch = model.patch_embed.proj
    macs = int(model.patch_embed.num_patches) * patch.weight[0].numel()
    macs += sum(head.out_features for head in linear)
    per_width = (params - fixed) // width
    return Rate(
        base=Cost(params=params - per_width * width, macs=pool_macs),
        per_width=Cost(params=per_width, macs=macs),
    )


def _attention_pool(model: nn.Module, tokens: int) -> tuple[int, int]:
    """Parameters and MACs of an attention-pooling head (SigLIP), (0, 0) without one."""
    pool = getattr(model, "attn_pool", None)
    if pool is None:
        return 0, 0
    seen = tokens if model.pool_include_prefix else tokens - model.num_prefix_tokens
    macs = 2 * seen * model.embed_dim
    for name, module in pool.named_modules():
        if isinstance(module, nn.Linear):
            macs += module.weight.numel() * (seen if name.endswith("kv") else 1)
    return parameters(pool), macs
