"""timm's image encoder of Segment Anything: attention in windows and, in some blocks, over all."""

from typing import Any

from timm.models.vision_transformer_sam import VisionTransformerSAM, get_rel_pos
from torch import Tensor, nn

from secateur.models.derived.blocks import as_rows
from secateur.models.derived.windows import Windows
from secateur.models.families.timm_vit import MLPS, resized
from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Holds,
    RelativeVectors,
    Residual,
    Statement,
    Stem,
    Tail,
)

ATTENTION = AttentionLayer(
    path="attn",
    classes=("Attention",),
    qk_norm=("q_norm", "k_norm"),
    relative=RelativeVectors(rows="rel_pos_h?", columns="rel_pos_w?", vectors=get_rel_pos),
    dropout="attn_drop",
    dropout_behind="proj_drop",
    call=Call(mask=None, grid=True),
    holds=Holds.HEADS,
)


def windows(block: Any) -> Windows | None:
    """Those of a block; None where its attention goes over all tokens."""
    return Windows((block.window_size, block.window_size)) if block.window_size else None


def embed(sam: Any, images_BCHW: Tensor) -> Tensor:
    """Patches and positions as tokens."""
    x = sam.patch_embed(images_BCHW)
    x = x if sam.pos_embed is None else x + sam.pos_embed
    return as_rows(sam.norm_pre(sam.patch_drop(sam.pos_drop(x))).contiguous())


def head(sam: VisionTransformerSAM, stream_BND: Tensor) -> Tensor:
    """Neck, pooling and classifier."""
    grid: Any = sam.patch_embed.grid_size
    x = sam.neck(stream_BND.unflatten(1, tuple(grid)).permute(0, 3, 1, 2))
    outputs: Tensor = sam.forward_head(x)
    return outputs


def neck_macs(sam: Any) -> int:
    """Products of the convolutions behind the last block."""
    tokens = sam.patch_embed.num_patches
    return sum(tokens * m.weight.numel() for m in sam.neck.modules() if isinstance(m, nn.Conv2d))


state(
    Statement(
        name="timm_sam",
        title="timm SAM image encoder",
        examples=("timm:samvit_base_patch16", "timm:samvit_base_patch16_224"),
        hosts=("timm.models.vision_transformer_sam:VisionTransformerSAM",),
        applies=lambda sam: sam.rope_global is None,
        blocks="blocks.*",
        grids="BHWD",
        residuals={
            "Block": (
                Residual(
                    layers=(ATTENTION,),
                    norm="norm1",
                    scale="ls1.gamma",
                    drop="drop_path1",
                    windows=windows,
                    inside=True,
                ),
                Residual(layers=MLPS, norm="norm2", scale="ls2.gamma", drop="drop_path2"),
            ),
        },
        stem=Stem(
            writer="patch_embed.proj",
            patch_norm="patch_embed.norm",
            norm="norm_pre",
            positions="pos_embed",
            classes={"patch_embed": ("PatchEmbed",)},
        ),
        tail=Tail(classifiers=("head.fc",), pool_macs=neck_macs),
        embed=embed,
        head=head,
        image=lambda sam: (sam.patch_embed.proj.in_channels, *sam.patch_embed.img_size),
        grid=lambda sam: tuple(sam.patch_embed.grid_size),
        sizes=("embed_dim",),
        resized=resized,
        fused="fused_attn",
    )
)
