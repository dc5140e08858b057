"""timm's Eva: EVA, and with rotary embeddings EVA-02, DINOv3, Perception Encoder, ViT-RoPE.

Where biases stand apart from the matrix (EVA, EVA-02 tiny and small), the host multiplies past
its modules. Queries, keys and values of EVA-02 base and large are layers of their own, keys
without a bias.
"""

from dataclasses import replace
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva
from torch import Tensor

from secateur.models.families.timm_vit import MLPS, head, pool_macs, reads, resized
from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Holds,
    Packed,
    Residual,
    Rotary,
    Separate,
    Statement,
    Stem,
    Tail,
)


def rotate(
    q_BHNK: Tensor, k_BHNK: Tensor, rope: Tensor, *, num_prefix_tokens: int, rotate_half: bool
) -> tuple[Tensor, Tensor]:
    """Turn all but the prefix tokens, as the host's layers do."""
    q = turned(q_BHNK, rope, num_prefix_tokens, rotate_half)
    return q, turned(k_BHNK, rope, num_prefix_tokens, rotate_half)


def turned(t: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """One of both."""
    patches = apply_rot_embed_cat(t[:, :, prefix:], rope, half=half)
    return torch.cat([t[:, :, :prefix], patches], dim=2).type_as(t)


def given(eva: Eva, index: int) -> dict[str, Any]:
    """The rotary embeddings of a block."""
    table: Any = eva.rope
    if table is None:
        return {"rope": None}
    sized = getattr(table, "feat_shape", None) is not None
    rope = table.get_embed() if sized else table.get_embed(shape=eva.patch_embed.grid_size)
    return {"rope": rope[index] if eva.rope_mixed else rope}


EVA = AttentionLayer(
    path="attn",
    classes=("EvaAttention",),
    qkv=Packed(bias=("q_bias", None, "v_bias")),
    qk_norm=("q_norm", "k_norm"),
    context_norm="norm",
    gate="gate",
    rotary=Rotary(argument="rope", apply=rotate, settings=("num_prefix_tokens", "rotate_half")),
    dropout="attn_drop",
    dropout_behind="proj_drop",
    call=Call(takes=("rope", "is_causal")),
)
SPLIT = replace(EVA, qkv=Separate(q="q_proj", k="k_proj", v="v_proj"))
ROPE = replace(
    EVA,
    classes=("AttentionRope",),
    qkv=Packed(),
    sizes={"attn_dim": "all_vo", "num_kv_heads": "heads", "kv_dim": "all_vo"},
    holds=Holds.HEADS,
)
SPLIT_ROPE = replace(ROPE, qkv=SPLIT.qkv, holds=Holds.NOTHING)


def steps(*attention: AttentionLayer) -> dict[str, tuple[Residual, ...]]:
    """Both kinds of blocks with these attention layers."""
    before = (
        Residual(layers=attention, norm="norm1", scale="gamma_1", drop="drop_path1"),
        Residual(layers=MLPS, norm="norm2", scale="gamma_2", drop="drop_path2"),
    )
    behind = tuple(replace(step, norm_behind=True, scale=None) for step in before)
    return {"EvaBlock": before, "EvaBlockPostNorm": behind}


SHARED = Statement(
    name="timm_eva",
    title="timm Eva with rotary embeddings (EVA-02, DINOv3, Perception Encoder, ViT-RoPE)",
    examples=(
        "timm:vit_base_patch16_dinov3",
        "timm:vit_base_patch16_rope_224",
        "timm:eva02_small_patch14_224",
        "timm:eva02_base_patch14_224",
    ),
    hosts=("timm.models.eva:Eva",),
    applies=lambda eva: eva.rope is not None and not eva.rope_mixed,
    blocks="blocks.*",
    residuals=steps(EVA, SPLIT, ROPE, SPLIT_ROPE),
    stem=Stem(
        writer="patch_embed.proj",
        patch_norm="patch_embed.norm",
        norm="norm_pre",
        positions="pos_embed",
        tokens=("cls_token", "reg_token"),
        classes={"patch_embed": ("PatchEmbed",)},
    ),
    tail=Tail(
        norms=("norm", "fc_norm"),
        classifiers=("head",),
        pool="attn_pool",
        pool_macs=pool_macs,
        reads=reads,
    ),
    embed=lambda eva, images: eva.norm_pre(eva._pos_embed(eva.patch_embed(images))[0]),
    head=head,
    image=lambda eva: (eva.patch_embed.proj.in_channels, *eva.patch_embed.img_size),
    grid=lambda eva: tuple(eva.patch_embed.grid_size),
    prefix=lambda eva: int(eva.num_prefix_tokens),
    given=given,
    sizes=("embed_dim", "num_features", "head_hidden_size"),
    resized=resized,
    fused="fused_attn",
    recomputes="grad_checkpointing",
)
state(SHARED)


def with_rotary(rotary: Rotary | None) -> dict[str, tuple[Residual, ...]]:
    """The steps with other rotary embeddings, or none."""
    return steps(*[replace(layer, rotary=rotary) for layer in (EVA, SPLIT, ROPE, SPLIT_ROPE)])


state(
    replace(
        SHARED,
        name="timm_eva_mixed",
        title="timm Eva with learned rotary embeddings per head",
        examples=("timm:vit_base_patch16_rope_mixed_224",),
        applies=lambda eva: eva.rope is not None and eva.rope_mixed,
        stem=replace(SHARED.stem, earlier={"rope": 0}),
        residuals=with_rotary(None if EVA.rotary is None else replace(EVA.rotary, per_head=True)),
    )
)
state(
    replace(
        SHARED,
        name="timm_eva_plain",
        title="timm Eva without rotary embeddings (EVA)",
        examples=("timm:eva_giant_patch14_224",),
        applies=lambda eva: eva.rope is None,
        residuals=with_rotary(None),
    )
)
