"""torchvision's VisionTransformer, whose attention is torch's nn.MultiheadAttention."""

from typing import Any

import torch
from torch import Tensor

from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    MlpLayer,
    Packed,
    Residual,
    Statement,
    Stem,
    Tail,
)

MULTIHEAD = AttentionLayer(
    path="self_attention",
    classes=("MultiheadAttention",),
    qkv=Packed(weight="in_proj_weight", bias="in_proj_bias"),
    out="out_proj",
    scale=None,
    dropout="dropout",
    call=Call(times=3, fixed={"need_weights": False}, pair=True),
)
MLP = MlpLayer(path="mlp", classes=("MLPBlock",), readers=("0",), writer="3")


def embed(vit: Any, images_BCHW: Tensor) -> Tensor:
    """Class token, patches and positions, as in `forward` and the encoder's own."""
    patches_BND = vit._process_input(images_BCHW)
    token_B1D = vit.class_token.expand(patches_BND.shape[0], -1, -1)
    placed_BND = torch.cat([token_B1D, patches_BND], dim=1) + vit.encoder.pos_embedding
    stream_BND: Tensor = vit.encoder.dropout(placed_BND)
    return stream_BND


def sides(vit: Any) -> tuple[int, int]:
    """Rows and columns of patches."""
    return (vit.image_size // vit.patch_size,) * 2


state(
    Statement(
        name="torchvision_vit",
        title="torchvision VisionTransformer",
        examples=("torchvision:vit_b_16",),
        hosts=("torchvision.models.vision_transformer:VisionTransformer",),
        blocks="encoder.layers.*",
        residuals={
            "EncoderBlock": (
                Residual(layers=(MULTIHEAD,), norm="ln_1", drop="dropout"),
                Residual(layers=(MLP,), norm="ln_2"),
            ),
        },
        stem=Stem(
            writer="conv_proj",
            positions="encoder.pos_embedding",
            tokens=("class_token",),
            classes={"conv_proj": ("Conv2d",)},
        ),
        tail=Tail(
            norms=("encoder.ln",),
            classifiers=("heads.head",),
            reads=lambda _vit: 1,
        ),
        embed=embed,
        head=lambda vit, stream_BND: vit.heads(vit.encoder.ln(stream_BND)[:, 0]),
        image=lambda vit: (vit.conv_proj.in_channels, vit.image_size, vit.image_size),
        grid=sides,
        prefix=lambda _vit: 1,
        sizes=("hidden_dim",),
    )
)
