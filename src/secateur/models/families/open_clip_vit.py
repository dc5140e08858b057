"""open_clip's image tower VisionTransformer, whose attention is torch's nn.MultiheadAttention."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from secateur.models.families.torchvision_vit import MULTIHEAD
from secateur.models.family import state
from secateur.models.statement import MlpLayer, Residual, Statement, Stem, Tail

ATTENTION = replace(MULTIHEAD, path="attn", call=replace(MULTIHEAD.call, mask="attn_mask"))
MLP = MlpLayer(path="mlp", classes=("Sequential",), readers=("c_fc",), writer="c_proj")


def head(tower: Any, stream_BND: Tensor) -> Any:
    """Pooled and projected, as in `forward`; with the other tokens where the tower gives them."""
    pooled_BD, tokens_BND = tower._pool(stream_BND)
    pooled_BC = pooled_BD if tower.proj is None else pooled_BD @ tower.proj
    return (pooled_BC, tokens_BND) if tower.output_tokens else pooled_BC


state(
    Statement(
        name="open_clip_vit",
        title="open_clip VisionTransformer (image tower)",
        examples=("open_clip:ViT-B-16",),
        hosts=("open_clip.transformer:VisionTransformer",),
        applies=lambda tower: tower.attn_pool is None,
        blocks="transformer.resblocks.*",
        residuals={
            "ResidualAttentionBlock": (
                Residual(layers=(ATTENTION,), norm="ln_1", scale="ls_1.gamma"),
                Residual(layers=(MLP,), norm="ln_2", scale="ls_2.gamma"),
            ),
        },
        stem=Stem(
            writer="conv1",
            norm="ln_pre",
            positions="positional_embedding",
            tokens=("class_embedding",),
        ),
        tail=Tail(norms=("ln_post",), matrix="proj"),
        embed=lambda tower, images_BCHW: tower._embeds(images_BCHW),
        head=head,
        image=lambda tower: (tower.conv1.in_channels, *tower.image_size),
        grid=lambda tower: tuple(tower.grid_size),
        prefix=lambda _tower: 1,
        classes=None,
    )
)
