"""timm's Beit: BEiT and BEiT v2, with biases of the logits by relative position.

Each layer has a table of them, or one module has it for all layers.
"""

from typing import Any

import torch
from timm.models.beit import Beit
from torch import Tensor

from secateur.models.families.timm_vit import MLPS, head, resized
from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Packed,
    Residual,
    Statement,
    Stem,
    TabulatedBias,
    Tail,
)


def table_of(holder: Any) -> tuple[Tensor, Tensor] | None:
    """The table of a layer, or of the module that all layers share."""
    if holder.relative_position_bias_table is None:
        return None
    return holder.relative_position_bias_table.T, holder.relative_position_index


def embed(beit: Beit, images_BCHW: Tensor) -> Tensor:
    """Class token, patches and positions, as in `forward_features`."""
    patches_BND = beit.patch_embed(images_BCHW)
    token_B1D = beit.cls_token.expand(patches_BND.shape[0], -1, -1)
    stream_BND = torch.cat([token_B1D, patches_BND], dim=1)
    if beit.pos_embed is not None:
        stream_BND = stream_BND + beit.pos_embed
    dropped_BND: Tensor = beit.pos_drop(stream_BND)
    return dropped_BND


def given(beit: Beit, _index: int) -> dict[str, Any]:
    """The biases that all layers share."""
    shared = beit.rel_pos_bias
    return {"shared_rel_pos_bias": None if shared is None else shared()}


ATTENTION = AttentionLayer(
    path="attn",
    classes=("Attention",),
    qkv=Packed(bias=("q_bias", None, "v_bias")),
    position_bias=TabulatedBias(read=table_of, shared="rel_pos_bias"),
    dropout="attn_drop",
    dropout_behind="proj_drop",
    call=Call(mask=None, takes=("shared_rel_pos_bias",)),
)

state(
    Statement(
        name="timm_beit",
        title="timm Beit (BEiT, BEiT v2)",
        examples=("timm:beit_base_patch16_224", "timm:beitv2_base_patch16_224"),
        hosts=("timm.models.beit:Beit",),
        blocks="blocks.*",
        residuals={
            "Block": (
                Residual(layers=(ATTENTION,), norm="norm1", scale="gamma_1", drop="drop_path1"),
                Residual(layers=MLPS, norm="norm2", scale="gamma_2", drop="drop_path2"),
            ),
        },
        stem=Stem(
            writer="patch_embed.proj",
            patch_norm="patch_embed.norm",
            positions="pos_embed",
            tokens=("cls_token",),
            earlier={"rel_pos_bias": 0},
            classes={"patch_embed": ("PatchEmbed",)},
        ),
        tail=Tail(norms=("norm", "fc_norm"), classifiers=("head",)),
        embed=embed,
        head=head,
        image=lambda beit: (beit.patch_embed.proj.in_channels, *beit.patch_embed.img_size),
        grid=lambda beit: tuple(beit.patch_embed.grid_size),
        prefix=lambda beit: int(beit.num_prefix_tokens),
        given=given,
        sizes=("embed_dim", "num_features", "head_hidden_size"),
        resized=resized,
        fused="fused_attn",
    )
)
