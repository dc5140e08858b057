"""timm's EfficientFormer: stages of convolutional MLPs on grids, then attention on tokens.

Pooling mixers have no weights and no products to count, so they are no branches; like the strided
convolutions between stages they stand between branches and stay.
"""

import math
from dataclasses import replace

from timm.models.efficientformer import EfficientFormer
from torch import Tensor, nn

from secateur.models.derived.blocks import as_tokens
from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    FixedLayer,
    Holds,
    MlpLayer,
    Packed,
    PositionBias,
    Residual,
    Statement,
    Stem,
    Tail,
    Transition,
)

STEM_STRIDE = 4
SIDE = 7
"""Side of the last stage's grid where no attention layer tells: that of 224 pixels."""

ATTENTION = AttentionLayer(
    path="token_mixer",
    classes=("Attention",),
    qkv=Packed(by_head=True),
    position_bias=PositionBias(table="attention_biases", index="attention_bias_idxs"),
    sizes={"key_dim": "qk", "val_dim": "vo", "key_attn_dim": "all_qk", "val_attn_dim": "all_vo"},
    call=Call(mask=None),
    holds=Holds.ALL,
)
POOLING = FixedLayer(path="token_mixer", classes=("Pooling",))
MLP = MlpLayer(path="mlp", classes=("Mlp",), readers=("fc1",), writer="fc2")
GRID_MLP = replace(MLP, classes=("ConvMlpWithNorm",), unit_norm="norm1", norm_behind="norm2")


def first_side(host: EfficientFormer) -> int:
    """Side of the first stage's grid: every strided convolution halves it.

    That of the last stage follows from the table of position biases if there is one left.
    """
    down = sum(not isinstance(stage.downsample, nn.Identity) for stage in host.stages)
    tokens = [len(table) for name, table in host.named_buffers() if name.endswith("bias_idxs")]
    return (math.isqrt(tokens[0]) if tokens else SIDE) << down


def head(host: EfficientFormer, stream_BND: Tensor) -> Tensor:
    """Final norm, pooling and both classifiers."""
    logits_BC: Tensor = host.forward_head(host.norm(stream_BND))
    return logits_BC


def resized(host: EfficientFormer, stage: int, width: int) -> None:
    """Tell timm's feature extraction the width."""
    host.feature_info[stage]["num_chs"] = width


state(
    Statement(
        name="efficientformer",
        title="timm EfficientFormer (L1, L3, L7)",
        examples=("timm:efficientformer_l1",),
        hosts=("timm.models.efficientformer:EfficientFormer",),
        blocks="stages.*.blocks.*",
        residuals={
            "MetaBlock1d": (
                Residual(layers=(ATTENTION,), norm="norm1", scale="ls1.gamma", drop="drop_path1"),
                Residual(layers=(MLP,), norm="norm2", scale="ls2.gamma", drop="drop_path2"),
            ),
            "MetaBlock2d": (
                Residual(layers=(POOLING,), scale="ls1.gamma", drop="drop_path1"),
                Residual(layers=(GRID_MLP,), scale="ls2.gamma", drop="drop_path2"),
            ),
        },
        grids="BDHW",
        flatten="Flat",
        transition=Transition(module="stages.*.downsample", writer="conv", norm="norm"),
        stem=Stem(
            writer="stem.conv2",
            patch_norm="stem.norm2",
            activation="stem.act2",
            earlier={"stem.conv1": 4, "stem.norm1": 0},
        ),
        tail=Tail(norms=("norm",), classifiers=("head", "head_dist")),
        embed=lambda host, images_BCHW: as_tokens(host.stem(images_BCHW)),
        head=head,
        image=lambda host: (host.in_chans, *[STEM_STRIDE * first_side(host)] * 2),
        grid=lambda host: (first_side(host), first_side(host)),
        sizes=("num_features", "head_hidden_size"),
        resized=resized,
        caches=("attention_bias_cache",),
    )
)
