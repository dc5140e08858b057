"""transformers' encoders with positions in their attention: DINOv3 (rotary), BEiT (tables)."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateur.models.families._transformers import STEM, Kind, Model, stated
from secateur.models.families.hf_encoders import (
    ATTENTION,
    GATED,
    MLP,
    block,
    class_token,
    of,
)
from secateur.models.statement import Holds, Rotary, Stem, TabulatedBias, Tail

TITLE = "transformers' DINOv3 and BEiT"


def rotate(
    q_BHNK: Tensor, k_BHNK: Tensor, embedding: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Turn the patches, which stand behind the other tokens, by pairs (i, i + K/2)."""
    cos_NK, sin_NK = embedding
    prefix = q_BHNK.shape[2] - cos_NK.shape[0]

    def turned(t: Tensor) -> Tensor:
        patches = t[:, :, prefix:]
        one, other = patches.chunk(2, dim=-1)
        patches = patches * cos_NK + torch.cat((-other, one), dim=-1) * sin_NK
        return torch.cat((t[:, :, :prefix], patches), dim=2)

    return turned(q_BHNK), turned(k_BHNK)


def angles(encoder: Model, image: tuple[int, int, int], _block: int) -> dict[str, Any]:
    """Cosines and sines of all patches, which follow from the size of images alone."""
    like = encoder.embeddings.patch_embeddings.weight
    return {"position_embeddings": encoder.rope_embeddings(like.new_empty(()).expand(1, *image))}


DINO3_BLOCK = block(
    of(
        ATTENTION,
        "Attention",
        "DINOv3ViT",
        heads="num_heads",
        sizes={},
        dropout="dropout",
        rotary=Rotary(argument="position_embeddings", apply=rotate),
        call=replace(ATTENTION.call, takes=("position_embeddings",)),
        holds=Holds.HEADS,
    ),
    (
        of(GATED, "GatedMLP", "DINOv3ViT"),
        of(MLP, "MLP", "DINOv3ViT", readers=("up_proj",), writer="down_proj"),
    ),
    ("norm1", "norm2"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    drop="drop_path",
)
DINO3 = Kind(
    type="dinov3_vit",
    title=TITLE,
    block={"DINOv3ViTLayer": DINO3_BLOCK},
    blocks="model.layer.*",
    stem=Stem(
        writer="embeddings.patch_embeddings",
        tokens=("embeddings.cls_token", "embeddings.register_tokens"),
        unused=("embeddings.mask_token",),
    ),
    prefix=lambda config: 1 + int(config.num_register_tokens),
    norm="norm",
    resizes=True,
    given=angles,
)
stated(
    DINO3,
    "DINOv3ViTModel",
    "",
    partial(class_token, "norm"),
    classes=None,
    example="facebook/dinov3-vitb16-pretrain-lvd1689m",
)


def table_of(holder: Any) -> tuple[Tensor, Tensor] | None:
    """The biases of a module of BEiT, by relative position at its own size of images."""
    if (table := getattr(holder, "relative_position_bias_table", None)) is None:
        return None
    index = holder.generate_relative_position_index(holder.window_size)
    return table.detach().T, index.to(table.device)


def masks(encoder: Model, image: tuple[int, int, int], block: int) -> dict[str, Any]:
    """The biases of a block, and those that all share, as a mask (1, H, N, N)."""
    holders = (encoder.layers[block], "relative_position_bias"), (encoder, SHARED)
    found = [getattr(owner, name, None) for owner, name in holders]
    side = int(encoder.config.patch_size)
    window = (image[1] // side, image[2] // side)
    biases = [holder(window) for holder in found if holder is not None]
    return {"attention_mask": sum(biases)} if biases else {}


def beit_head(encoder: Model, stream_BND: Tensor) -> dict[str, Tensor | None]:
    """The last state, and what the pooler makes of it."""
    last_BND = encoder.layernorm(stream_BND)
    return {"tokens": last_BND, "pooled": encoder.pooler and encoder.pooler(last_BND)}


def beit_logits(model: Model, stream_BND: Tensor) -> Tensor:
    """The classifier reads the mean of the patches behind its norm, or the class token."""
    logits_BC: Tensor = model.classifier(beit_head(model.beit, stream_BND)["pooled"])
    return logits_BC


SHARED = "shared_position_bias"
BEIT_BLOCK = block(
    of(
        ATTENTION,
        "Attention",
        "Beit",
        position_bias=TabulatedBias(
            read=table_of, shared=f"beit.{SHARED}", beside="relative_position_bias"
        ),
        call=replace(ATTENTION.call, by_position=()),
        holds=Holds.NOTHING,
    ),
    (of(MLP, "MLP", "Beit"),),
    ("layernorm_before", "layernorm_after"),
    scales=("lambda_1", "lambda_2"),
    drop="drop_path",
)
BEIT = Kind(
    type="beit",
    title=TITLE,
    block={"BeitLayer": BEIT_BLOCK},
    stem=replace(STEM, positions="embeddings.position_embeddings", earlier={SHARED: 0}),
    given=masks,
)
(_attention,) = BEIT_BLOCK[0].layers
_bare = replace(_attention, position_bias=replace(_attention.position_bias, shared=SHARED))
BARE = replace(BEIT, block={"BeitLayer": (replace(BEIT_BLOCK[0], layers=(_bare,)), BEIT_BLOCK[1])})
POOLED = Tail(norms=("layernorm", "pooler.layernorm?"))
stated(
    BEIT,
    "BeitForImageClassification",
    "beit",
    beit_logits,
    tail=POOLED,
    classifiers=("classifier",),
    example="microsoft/beit-base-patch16-224",
)
stated(BARE, "BeitModel", "", beit_head, tail=POOLED, classes=None)
