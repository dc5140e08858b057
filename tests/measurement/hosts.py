"""Tiny timm models with random weights, dense and with parts removed."""

from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from timm.layers import SwiGLU, SwiGLUPacked
from torch import nn

from secateur.models.family import family_of, read
from secateur.models.weights import AttentionWeights, MlpWeights

INPUT = (3, 32, 32)


def host(name: str = "vit_tiny_patch16_224", **changes: object) -> nn.Module:
    """A model of a timm architecture in miniature: 16 patches, width 48, 3 heads of 16, 2 blocks.

    Every parameter is random, also those that begin as zeros or ones, so that none is without
    effect.
    """
    size: dict[str, object] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 10,
    }
    model = timm.create_model(name, **(size | changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "vit": host,
    "deit_distilled": lambda: host("deit_tiny_distilled_patch16_224"),
    "deit3_layer_scale": lambda: host("deit3_small_patch16_224"),
    "dinov2_registers": lambda: host("vit_small_patch14_reg4_dinov2"),
    "dinov2_swiglu_packed": lambda: host(
        "vit_small_patch14_reg4_dinov2", mlp_layer=SwiGLUPacked, act_layer=nn.SiLU
    ),
    "dinov2_swiglu_split": lambda: host(
        "vit_small_patch14_reg4_dinov2", mlp_layer=SwiGLU, act_layer=nn.SiLU
    ),
    "average_pool": lambda: host(global_pool="avg", class_token=False),
    "attention_pool": lambda: host(global_pool="map", class_token=False),
    "attention_pool_prefix": lambda: host(global_pool="map", pool_include_prefix=True),
    "no_biases": lambda: host(qkv_bias=False, proj_bias=False),
    "qk_norm": lambda: host(qk_norm=True),
    "headless": lambda: host(num_classes=0),
}


def resize(model: nn.Module, branch_id: str, **sizes: int) -> None:
    """Keep the first `heads` heads, `qk` and `vo` dims or `hidden` neurons of a branch."""
    family, branch = family_of(model), read(model).branch(branch_id)
    weights = family.weights(model, branch)
    if isinstance(weights, MlpWeights):
        f = sizes["hidden"]
        new = replace(
            weights,
            readers_FD=tuple(w[:f] for w in weights.readers_FD),
            reader_biases_F=tuple(b if b is None else b[:f] for b in weights.reader_biases_F),
            w2_DF=weights.w2_DF[:, :f],
        )
        return family.assign_(model, branch, new)
    family.assign_(model, branch, _smaller(weights, **sizes))


def _smaller(
    w: AttentionWeights, heads: int | None = None, qk: int | None = None, vo: int | None = None
) -> AttentionWeights:
    def first(t: torch.Tensor | None, units: int | None) -> torch.Tensor | None:
        return t if t is None else t[:heads, :units]

    return replace(
        w,
        q_HKD=w.q_HKD[:heads, :qk],
        k_HKD=w.k_HKD[:heads, :qk],
        v_HVD=w.v_HVD[:heads, :vo],
        o_DHV=w.o_DHV[:, :heads, :vo],
        qb_HK=first(w.qb_HK, qk),
        kb_HK=first(w.kb_HK, qk),
        vb_HV=first(w.vb_HV, vo),
    )


def slim() -> nn.Module:
    """A ViT of three blocks with unequal query/key and value dims, and two branches dropped."""
    model = host(depth=3)
    resize(model, "blocks.0.attn", qk=8, vo=12)
    resize(model, "blocks.0.mlp", hidden=80)
    resize(model, "blocks.1.attn", heads=2, qk=16, vo=8)
    family_of(model).drop_(model, {"blocks.1.mlp", "blocks.2.attn"})
    return model
