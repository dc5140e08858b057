"""transformers' plain pre-norm encoders: ViT, DeiT, DINOv2, CLIP, SigLIP, I-JEPA, ViT-MSN, AIMv2.

One row per model class; the classes differ in names, prefix tokens and what reads the last state.
The package is optional and is looked at only where a model of it is.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateur.models.families._transformers import STEM, Kind, Model, square, stated
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Holds,
    MlpLayer,
    Names,
    Residual,
    Separate,
    Stem,
    Tail,
)

ATTENTION = AttentionLayer(
    path="attention",
    classes=("ViT", "DeiT", "IJepa", "ViTMSN", "Dinov2", "Dinov2WithRegisters"),
    qkv=Separate(q="q_proj", k="k_proj", v="v_proj"),
    out="o_proj",
    heads="num_attention_heads",
    scale="scaling",
    sizes={"head_dim": "qk"},
    dropout="attention_dropout",
    call=Call(mask="attention_mask", by_position=("attention_mask",), pair=True),
    holds=Holds.EQUAL_DIMS,
)
MLP = MlpLayer(path="mlp", classes=ATTENTION.classes, readers=("fc1",), writer="fc2")
GATED = replace(MLP, readers=("gate_proj", "up_proj"), writer="down_proj")


def of(layer: Any, suffix: str, *kinds: str, **changes: Any) -> Any:
    """A layer of the classes that these kinds of models have."""
    names = tuple(f"{kind}{suffix}" for kind in kinds or layer.classes)
    return replace(layer, classes=names, **changes)


def block(attention: AttentionLayer, mlps: tuple[MlpLayer, ...], norms: Names, **more: Any) -> Any:
    """Attention and MLP, each behind its norm."""
    scales = more.pop("scales", (None, None))
    layers: tuple[tuple[Any, ...], ...] = ((attention,), mlps)
    return tuple(
        Residual(layers=layers[i], norm=norms[i], scale=scales[i], drop_shared=True, **more)
        for i in (0, 1)
    )


CLIP = {
    "out": "out_proj",
    "heads": "num_heads",
    "scale": "scale",
    "dropout": "dropout",
    "call": replace(ATTENTION.call, by_name="hidden_states"),
}
VIT_BLOCK = block(
    of(ATTENTION, "Attention"),
    (of(MLP, "MLP"),),
    ("layernorm_before", "layernorm_after"),
    drop="dropout",
)
DINO_BLOCK = block(
    of(ATTENTION, "Attention"),
    (of(MLP, "MLP"), of(GATED, "SwiGLUFFN")),
    ("norm1", "norm2"),
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    drop="drop_path",
)
CLIP_BLOCK = block(
    of(ATTENTION, "Attention", "CLIP", "Siglip", path="self_attn", **CLIP),
    (of(MLP, "MLP", "CLIP", "Siglip"),),
    ("layer_norm1", "layer_norm2"),
)
AIM_BLOCK = block(
    of(ATTENTION, "Attention", "Aimv2", **CLIP),
    (of(GATED, "MLP", "Aimv2", path="ffn"),),
    ("rms_norm1", "rms_norm2"),
)


def vit(type_: str, **stem: Any) -> Kind:
    """A type with the layout of ViT, and what its stem has besides."""
    prefix = stem.pop("prefix", 1)
    blocks = {f"{name}Layer": VIT_BLOCK for name in ("ViT", "DeiT", "IJepa", "ViTMSN")}
    found = replace(STEM, **stem)
    return Kind(type=type_, title=TITLE, block=blocks, stem=found, prefix=lambda _config: prefix)


TITLE = "transformers' ViT, DeiT, DINOv2, CLIP, SigLIP, I-JEPA, ViT-MSN and AIMv2"
DISTILLED = ("embeddings.cls_token", "embeddings.distillation_token")
DINO = Kind(
    type="dinov2",
    title=TITLE,
    block={"Dinov2Layer": DINO_BLOCK, "Dinov2WithRegistersLayer": DINO_BLOCK},
    blocks="encoder.layer.*",
    stem=replace(STEM, positioned=1),
    resizes=True,
)
REGISTERS = replace(
    DINO,
    type="dinov2_with_registers",
    stem=replace(DINO.stem, tokens=("embeddings.cls_token", "embeddings.register_tokens")),
    prefix=lambda config: 1 + int(config.num_register_tokens),
)
CLIP_VISION = Kind(
    type="clip",
    title=TITLE,
    block={"CLIPEncoderLayer": CLIP_BLOCK, "SiglipEncoderLayer": CLIP_BLOCK},
    blocks="encoder.layers.*",
    stem=Stem(
        writer="embeddings.patch_embedding",
        norm="pre_layrnorm",
        positions="embeddings.position_embedding.weight",
        tokens=("embeddings.class_embedding",),
    ),
    norm="post_layernorm",
)
SIGLIP = replace(
    CLIP_VISION,
    type="siglip",
    stem=replace(CLIP_VISION.stem, norm=None, tokens=()),
    prefix=lambda _config: 0,
)
AIM = Kind(
    type="aimv2",
    title=TITLE,
    block={"Aimv2EncoderLayer": AIM_BLOCK},
    blocks="encoder.layers.*",
    stem=Stem(
        writer="embeddings.patch_embed",
        patch_norm="embeddings.rms_norm",
        positions="embeddings.position_embedding.weight?",
    ),
    prefix=lambda _config: 0,
    norm="rms_norm",
)


def features(norm: str, encoder: Model, stream_BND: Tensor) -> dict[str, Tensor | None]:
    """The last state, normed, and what the pooler makes of it."""
    last_BND = encoder.get_submodule(norm)(stream_BND)
    pool = getattr(encoder, "pooler", None) or getattr(encoder, "head", None)
    return {"tokens": last_BND, "pooled": None if pool is None else pool(last_BND)}


def class_token(norm: str, encoder: Model, stream_BND: Tensor) -> dict[str, Tensor]:
    """DINO: the last state, and its first token once more."""
    last_BND = encoder.get_submodule(norm)(stream_BND)
    return {"tokens": last_BND, "pooled": last_BND[:, 0]}


def bare(encoder: Model, stream_BND: Tensor) -> dict[str, Tensor]:
    """CLIP: the last state without a norm, and the class token with it."""
    return {"tokens": stream_BND, "pooled": encoder.post_layernorm(stream_BND[:, 0])}


def projected(model: Model, stream_BND: Tensor) -> dict[str, Tensor]:
    """CLIP: the embedding of the image, and the last state."""
    pooled = bare(model.vision_model, stream_BND)["pooled"]
    return {"embedding": model.visual_projection(pooled), "tokens": stream_BND}


def distilled(model: Model, stream_BND: Tensor) -> Tensor:
    """DeiT with its two classifiers."""
    last_BND = model.deit.layernorm(stream_BND)
    one, other = model.cls_classifier(last_BND[:, 0]), model.distillation_classifier(last_BND[:, 1])
    logits_BC: Tensor = (one + other) / 2
    return logits_BC


Pool = Callable[[Tensor, int], Tensor]


def first(last_BND: Tensor, _prefix: int) -> Tensor:
    """The class token."""
    return last_BND[:, 0]


def patches(last_BND: Tensor, prefix: int) -> Tensor:
    """The mean of the patches."""
    return last_BND[:, prefix:].mean(1)


def beside(last_BND: Tensor, prefix: int) -> Tensor:
    """The class token beside the mean of the patches (B, 2 D)."""
    return torch.cat([last_BND[:, 0], last_BND[:, prefix:].mean(1)], dim=1)


def classify(kind: Kind, name: str, base: str, pool: Pool, tail: Any = None, **more: Any) -> None:
    """State the image classifier of a type: normed as its `tail` says, pooled, one linear layer."""
    norms = (kind.norm,) if tail is None else tail.norms

    def head(model: Model, stream_BND: Tensor) -> Tensor:
        encoder, x_BND = model.get_submodule(base), stream_BND
        for norm in norms:
            x_BND = encoder.get_submodule(norm)(x_BND)
        logits_BC: Tensor = model.classifier(pool(x_BND, kind.prefix(encoder.config)))
        return logits_BC

    cls = f"{name}ForImageClassification"
    stated(kind, cls, base, head, tail=tail, classifiers=("classifier",), **more)


def pool_macs(encoder: Model) -> int:
    """Products of a pooling head in which one query attends to all patches."""
    config, width = encoder.config, int(encoder.config.hidden_size)
    tokens = prod(square(config.image_size)) // prod(square(config.patch_size))
    macs = 2 * tokens * width
    for name, weight in encoder.head.named_parameters():
        if name.endswith("in_proj_weight"):
            macs += width * width * (1 + 2 * tokens)
        elif weight.ndim == 2:
            macs += weight.numel() * (tokens if name.startswith(("k_proj", "v_proj")) else 1)
    return macs


VIT, DEIT = vit("vit"), vit("deit", tokens=DISTILLED, prefix=2)
MSN, IJEPA = vit("vit_msn"), vit("ijepa", tokens=(), prefix=0)
POOLER = Tail(norms=("layernorm",), classifiers=("pooler.dense?",))
for _kind, _name, _pool, _example in (
    (VIT, "ViT", first, "google/vit-base-patch16-224"),
    (DEIT, "DeiT", first, None),
    (IJEPA, "IJepa", patches, None),
):
    classify(_kind, _name, _kind.type, _pool, example=_example)
    stated(_kind, f"{_name}Model", "", partial(features, "layernorm"), tail=POOLER, classes=None)
stated(
    DEIT,
    "DeiTForImageClassificationWithTeacher",
    "deit",
    distilled,
    classifiers=("cls_classifier", "distillation_classifier"),
    example="facebook/deit-base-distilled-patch16-224",
)
classify(MSN, "ViTMSN", "vit", first)
stated(MSN, "ViTMSNModel", "", lambda msn, x_BND: msn.layernorm(x_BND), classes=None)

for _kind, _name in ((DINO, "Dinov2"), (REGISTERS, "Dinov2WithRegisters")):
    _token = partial(class_token, "layernorm")
    _example = f"facebook/{_kind.type.replace('_', '-')}-base"
    classify(_kind, _name, _kind.type, beside)
    stated(_kind, f"{_name}Model", "", _token, classes=None, example=_example)

classify(CLIP_VISION, "CLIP", "vision_model", patches, tail=Tail(unread=("post_layernorm",)))
stated(CLIP_VISION, "CLIPVisionModel", "", bare, classes=None)
stated(
    CLIP_VISION,
    "CLIPVisionModelWithProjection",
    "vision_model",
    projected,
    classifiers=("visual_projection",),
    classes=None,
)

_tail = Tail(norms=("post_layernorm",), pool="head?", pool_macs=pool_macs)
classify(SIGLIP, "Siglip", "vision_model", patches, tail=_tail)
_head = partial(features, "post_layernorm")
stated(SIGLIP, "SiglipVisionModel", "", _head, tail=_tail, classes=None)
_tail, _head = replace(_tail, norms=("rms_norm",)), partial(features, "rms_norm")
stated(AIM, "Aimv2VisionModel", "", _head, tail=_tail, classes=None)
