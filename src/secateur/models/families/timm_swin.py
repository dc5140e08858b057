"""timm's Swin: stages of attention in windows, every second one shifted, with merging between."""

from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from secateur.models.derived.blocks import as_rows
from secateur.models.derived.windows import Windows
from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Holds,
    MlpLayer,
    PositionBias,
    Residual,
    Statement,
    Stem,
    Tail,
    Transition,
)

ATTENTION = AttentionLayer(
    path="attn",
    classes=("WindowAttention",),
    position_bias=PositionBias(
        table="relative_position_bias_table", index="relative_position_index", heads=1
    ),
    dropout="attn_drop",
    dropout_behind="proj_drop",
    call=Call(mask="mask"),
    holds=Holds.HEADS,
)
MLP = MlpLayer(path="mlp", classes=("Mlp",), readers=("fc1",), writer="fc2", norm="norm")


def windows(block: Any) -> Windows:
    """Those of a block."""
    return Windows(tuple(block.window_size), tuple(block.shift_size))


def embed(swin: Any, images_BCHW: Tensor) -> Tensor:
    """Patches as tokens."""
    return as_rows(swin.patch_embed(images_BCHW))


def head(swin: SwinTransformer, stream_BND: Tensor) -> Tensor:
    """Final norm, pooling and classifier."""
    grid: Any = swin.layers[-1].output_resolution
    logits: Tensor = swin.forward_head(swin.norm(stream_BND.unflatten(1, tuple(grid))))
    return logits


def resized(swin: SwinTransformer, stage: int, width: int) -> None:
    """Tell timm's feature extraction the width."""
    swin.feature_info[stage]["num_chs"] = width


state(
    Statement(
        name="timm_swin",
        title="timm Swin",
        examples=("timm:swin_tiny_patch4_window7_224", "timm:swin_base_patch4_window12_384"),
        hosts=("timm.models.swin_transformer:SwinTransformer",),
        blocks="layers.*.blocks.*",
        grids="BHWD",
        residuals={
            "SwinTransformerBlock": (
                Residual(layers=(ATTENTION,), norm="norm1", drop="drop_path1", windows=windows),
                Residual(layers=(MLP,), norm="norm2", drop="drop_path2"),
            ),
        },
        transition=Transition(
            module="layers.*.downsample", writer="reduction", norm_before="norm", side=2
        ),
        stem=Stem(
            writer="patch_embed.proj",
            patch_norm="patch_embed.norm",
            classes={"patch_embed": ("PatchEmbed",)},
        ),
        tail=Tail(norms=("norm",), classifiers=("head.fc",)),
        embed=embed,
        head=head,
        image=lambda swin: (swin.patch_embed.proj.in_channels, *swin.patch_embed.img_size),
        grid=lambda swin: tuple(swin.patch_embed.grid_size),
        sizes=("num_features", "head_hidden_size"),
        resized=resized,
        fused="fused_attn",
    )
)
