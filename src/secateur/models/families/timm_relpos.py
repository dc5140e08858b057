"""timm's ViT with relative positions: biases of the logits from a table, or from a small MLP.

What the MLP makes of coordinates does not depend on the image, so it is a table, too.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RelPosBias
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor

from secateur.models.families.timm_vit import MLPS, head, resized
from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Residual,
    Statement,
    Stem,
    TabulatedBias,
    Tail,
)


def table_of(holder: Any) -> tuple[Tensor, Tensor] | None:
    """The biases of a layer, or of the module that all layers share."""
    found = getattr(holder, "rel_pos", holder)
    if found is None:
        return None
    index = found.relative_position_index
    if isinstance(found, RelPosBias):
        side = found.bias_shape[0]
        return found.relative_position_bias_table.T, index.view(side, side)
    mlp, side = found.mlp, found.window_area
    table_TH = mlp.fc2(mlp.act(mlp.fc1(found.rel_coords_log))).flatten(0, 1)
    table_HT = found.bias_act(table_TH).T * (found.bias_gain or 1)
    places_NN, more = index.view(side, side), found.prefix_tokens
    if more:
        # WHY: pairs with a prefix token have no bias, which is one more entry, a zero.
        places_NN = F.pad(places_NN, (more, 0, more, 0), value=table_HT.shape[1])
        table_HT = F.pad(table_HT, (0, 1))
    return table_HT, places_NN


def embed(vit: VisionTransformerRelPos, images_BCHW: Tensor) -> Tensor:
    """Patches and perhaps a class token."""
    stream_BND: Tensor = vit.patch_embed(images_BCHW)
    if vit.cls_token is None:
        return stream_BND
    return torch.cat([vit.cls_token.expand(stream_BND.shape[0], -1, -1), stream_BND], dim=1)


def given(vit: VisionTransformerRelPos, _index: int) -> dict[str, Any]:
    """The biases that all layers share."""
    shared = vit.shared_rel_pos
    return {"shared_rel_pos": None if shared is None else shared.get_bias()}


ATTENTION = AttentionLayer(
    path="attn",
    classes=("RelPosAttention",),
    qk_norm=("q_norm", "k_norm"),
    position_bias=TabulatedBias(read=table_of, shared="shared_rel_pos"),
    dropout="attn_drop",
    dropout_behind="proj_drop",
    call=Call(mask=None, takes=("shared_rel_pos",)),
)
BEFORE = (
    Residual(layers=(ATTENTION,), norm="norm1", scale="ls1.gamma", drop="drop_path1"),
    Residual(layers=MLPS, norm="norm2", scale="ls2.gamma", drop="drop_path2"),
)

state(
    Statement(
        name="timm_relpos",
        title="timm ViT with relative positions",
        examples=("timm:vit_relpos_base_patch16_224", "timm:vit_srelpos_small_patch16_224"),
        hosts=("timm.models.vision_transformer_relpos:VisionTransformerRelPos",),
        blocks="blocks.*",
        residuals={
            "RelPosBlock": BEFORE,
            "ResPostRelPosBlock": tuple(
                replace(step, norm_behind=True, scale=None) for step in BEFORE
            ),
        },
        stem=Stem(
            writer="patch_embed.proj",
            patch_norm="patch_embed.norm",
            tokens=("cls_token",),
            earlier={"shared_rel_pos": 0},
            classes={"patch_embed": ("PatchEmbed",)},
        ),
        tail=Tail(norms=("norm", "fc_norm"), classifiers=("head",)),
        embed=embed,
        head=head,
        image=lambda vit: (vit.patch_embed.proj.in_channels, *vit.patch_embed.img_size),
        grid=lambda vit: tuple(vit.patch_embed.grid_size),
        prefix=lambda vit: int(vit.num_prefix_tokens),
        given=given,
        sizes=("embed_dim", "num_features", "head_hidden_size"),
        resized=resized,
        fused="fused_attn",
    )
)
