"""Tiny random models of every kind; the contract tests run on each that is registered here.

A new model family registers one builder per kind of member and gets the whole suite:

    @host("my_family_with_a_twist")
    def _() -> nn.Module:
        return MyModel(width=32, depth=3, heads=4)
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import timm
import torch
import transformers
from timm.layers import Attention, HybridEmbed, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientformer import Attention as BiasedAttention
from timm.models.efficientformer import EfficientFormer, MetaBlock1d
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from secateur.models.caches import observable
from secateur.models.family import read
from secateur.models.outputs import outputs_of
from secateur.models.types import Anatomy

HOSTS: dict[str, Callable[[], nn.Module]] = {}


def host(name: str) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a builder of a tiny model with at least three blocks."""

    def file(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert name not in HOSTS, f"host '{name}' is registered twice"
        HOSTS[name] = build
        return build

    return file


def build(name: str) -> nn.Module:
    """A fresh host in evaluation mode; every parameter is random, the same at each call."""
    return copy.deepcopy(shared(name))


@cache
def shared(name: str) -> nn.Module:
    """The same for all, for looking only; with attention that hooks can see into."""
    return observable(as_made(name))


@cache
def as_made(name: str) -> nn.Module:
    """The host as its library has it."""
    return settled(HOSTS[name](), name)


def settled(model: nn.Module, name: str) -> nn.Module:
    """A model in evaluation mode with random parameters that follow from a name."""
    randomise_(model, seed=sum(name.encode()))
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        settle_(model)
    return model.eval()


@cache
def anatomy_of(name: str) -> Anatomy:
    """The anatomy of a host."""
    return read(shared(name))


def images_for(model: nn.Module, count: int = 4, seed: int = 0) -> Tensor:
    """Random images of the size that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *read(model).input_size, generator=generator)


@torch.no_grad()
def randomise_(model: nn.Module, seed: int) -> None:
    """Random values for all parameters, also for those that begin as zeros, ones or nearly so.

    Biases of zero, norms of one and LayerScales of 1e-5 would hide most mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("bias", "token", "pos_embed", "position_embeddings", "latent")):
            parameter.copy_(0.4 * noise)
        elif parameter.ndim < 2:
            parameter.copy_(1 + 0.3 * noise)
        else:
            parameter.copy_(1.3 * noise / parameter[0].numel() ** 0.5)


@torch.no_grad()
def settle_(model: nn.Module) -> None:
    """Give batch norms the statistics of some images, as training would."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()
    model(images_for(model, 8, seed=5))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def unused(model: nn.Module) -> set[str]:
    """Parameters that the outputs do not depend on: mask tokens, norms that nothing reads."""
    outputs_of(model(images_for(model))).sum().backward()
    return {path for path, parameter in model.named_parameters() if parameter.grad is None}


SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2,
    "num_classes": 10,
}


def vit(**changes: Any) -> nn.Module:
    """A plain timm VisionTransformer in miniature."""
    return VisionTransformer(**SIZES | changes)


def named(name: str, **changes: Any) -> nn.Module:
    """A model of a timm architecture in miniature."""
    return timm.create_model(name, **SIZES | changes)


def gated() -> nn.Module:
    """A ViT whose attention outputs are gated."""
    model = VisionTransformer(**SIZES)
    for block in model.blocks:
        block.attn = Attention(32, num_heads=4, qkv_bias=True, gated=True)
    return model


def hybrid() -> nn.Module:
    """A ViT on the feature map of a convolutional network with groups and an own normalisation."""
    stem = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
        nn.ReLU(),
    )
    return VisionTransformer(
        **SIZES | {"patch_size": 2, "pre_norm": True},
        embed_layer=partial(HybridEmbed, backbone=stem),
    )


def efficientformer(num_vit: int = 2, **changes: Any) -> nn.Module:
    """An EfficientFormer of two stages on 56 x 56 pixels, with smaller attention."""
    sizes: dict[str, Any] = {"depths": (2, 3), "embed_dims": (16, 24), "mlp_ratios": 2}
    model = EfficientFormer(num_classes=10, num_vit=num_vit, **sizes | changes)
    for block in model.stages[-1].blocks:
        if isinstance(block, MetaBlock1d):
            width = block.token_mixer.proj.out_features
            block.token_mixer = BiasedAttention(width, 8, num_heads=4, attn_ratio=2, resolution=7)
    return model


TIMM_VITS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "vit_two_wide_heads": partial(vit, num_heads=2),
    "vit_no_biases": partial(vit, qkv_bias=False, proj_bias=False),
    "vit_average_pool": partial(vit, class_token=False, global_pool="avg"),
    "vit_attention_pool": partial(vit, class_token=False, global_pool="map"),
    "vit_refined_pool": partial(vit, global_pool="prr"),
    "vit_no_positions": partial(vit, pos_embed="none", embed_norm_layer=nn.LayerNorm),
    "vit_any_size": partial(vit, dynamic_img_size=True),
    "vit_swiglu": partial(vit, mlp_layer=SwiGLU, act_layer=nn.SiLU),
    "vit_qk_norm": partial(vit, qk_norm=True, num_heads=2),
    "vit_scale_norms": partial(vit, scale_attn_norm=True, scale_mlp_norm=True),
    "vit_gated": gated,
    "vit_post_norm": partial(vit, block_fn=ResPostBlock, init_values=0.1),
    "deit_distilled": partial(VisionTransformerDistilled, **SIZES),
    "deit3": partial(named, "deit3_small_patch16_224"),
    "dinov2_registers": partial(named, "vit_small_patch14_reg4_dinov2"),
    "dinov2_swiglu_packed": partial(
        named, "vit_small_patch14_reg4_dinov2", mlp_layer=SwiGLUPacked, act_layer=nn.SiLU
    ),
    "hybrid": hybrid,
    "clip": partial(named, "vit_base_patch16_clip_quickgelu_224.openai"),
    "aimv2": partial(
        vit,
        qkv_bias=False,
        proj_bias=False,
        norm_layer=RmsNorm,
        mlp_layer=SwiGLU,
        class_token=False,
        global_pool="avg",
    ),
}
for _name, _build in TIMM_VITS.items():
    host(_name)(_build)

ROPE: dict[str, Any] = {"attn_type": "rope", "use_rot_pos_emb": True, "use_abs_pos_emb": False}
TIMM_EVAS: dict[str, Callable[[], nn.Module]] = {
    "eva_dinov3": partial(
        Eva,
        **SIZES | ROPE | {"rope_type": "dinov3", "attn_type": "eva"},
        qkv_bias=False,
        rope_rotate_half=True,
        num_reg_tokens=2,
        init_values=0.1,
    ),
    "eva_rope": partial(Eva, **SIZES | ROPE | {"use_abs_pos_emb": True}),
    "eva_mixed": partial(Eva, **SIZES | ROPE, rope_type="mixed"),
    "eva_norms": partial(named, "eva_giant_patch14_224", scale_attn_inner=True, scale_mlp=True),
    "eva02_packed": partial(named, "eva02_tiny_patch14_224"),
    "eva02_split": partial(named, "eva02_base_patch14_224"),
    "beit": partial(named, "beit_base_patch16_224"),
    "beitv2_shared": partial(
        named,
        "beitv2_base_patch16_224",
        use_shared_rel_pos_bias=True,
        use_abs_pos_emb=True,
        global_pool="token",
    ),
    "relpos_mlp": partial(named, "vit_relpos_small_patch16_224", class_token=True, qkv_bias=True),
}
for _name, _build in TIMM_EVAS.items():
    host(_name)(_build)

TORCHVISION: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 3,
    "num_heads": 4,
    "hidden_dim": 32,
    "mlp_dim": 64,
    "num_classes": 10,
}
host("torchvision_vit")(partial(TorchvisionViT, **TORCHVISION))
if find_spec("open_clip") is not None:
    from open_clip.transformer import VisionTransformer as Tower

    TOWER: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3}
    host("open_clip_vit")(
        partial(Tower, **TOWER, heads=4, mlp_ratio=2, output_dim=10, ls_init_value=0.1)
    )

host("efficientformer")(partial(efficientformer, depths=(2, 4), num_vit=3))
host("efficientformer_grids")(partial(efficientformer, depths=(1, 2, 2), embed_dims=(8, 16, 24)))

WINDOWS: dict[str, Any] = {
    "img_size": (28, 36),
    "patch_size": 2,
    "embed_dim": 16,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "drop_path_rate": 0.0,
    "mlp_ratio": 2,
    "num_classes": 10,
}
"""Grids of 14 × 18 and 7 × 9 patches: windows hold padding, and merging pads, too."""
host("swin")(partial(SwinTransformer, **WINDOWS))
host("sam")(
    partial(
        VisionTransformerSAM,
        **SIZES | {"img_size": (40, 56), "depth": 3, "num_heads": 2},
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
        neck_chans=8,
    )
)
HF: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def hf(cls: str, **changes: Any) -> nn.Module:
    """A model of transformers in miniature, from the name of its class."""
    host = getattr(transformers, cls)
    if host.config_class.sub_configs:
        config = host.config_class(vision_config=HF | changes)
        config.num_labels = 10
    else:
        config = host.config_class(**HF | {"num_labels": 10} | changes)
    return host(config)


@cache
def _giving_tensors(cls: type[Any]) -> type[Any]:
    def forward(model: Any, *args: Any, **given: Any) -> Any:
        found = cls.forward(model, *args, **given)
        return found if given else outputs_of(found)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})


def hf_tensors(cls: str, **changes: Any) -> nn.Module:
    """The same with tensors for outputs, like all other hosts, unless more is asked for."""
    model = hf(cls, **changes)
    model.__class__ = _giving_tensors(type(model))
    return model


DINO: dict[str, Any] = {"mlp_ratio": 2, "num_register_tokens": 2, "use_swiglu_ffn": True}
TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "hf_vit": partial(hf_tensors, "ViTForImageClassification"),
    "hf_deit_teacher": partial(hf_tensors, "DeiTForImageClassificationWithTeacher"),
    "hf_dinov2_registers": partial(hf_tensors, "Dinov2WithRegistersForImageClassification", **DINO),
    "hf_clip": partial(hf_tensors, "CLIPForImageClassification"),
    "hf_siglip_features": partial(hf_tensors, "SiglipVisionModel"),
    "hf_aimv2_features": partial(hf_tensors, "Aimv2VisionModel"),
    "hf_dinov3_features": partial(
        hf_tensors, "DINOv3ViTModel", num_register_tokens=2, pos_embed_rescale=None
    ),
    "hf_beit": partial(
        hf_tensors,
        "BeitForImageClassification",
        use_relative_position_bias=True,
        drop_path_rate=0.0,
    ),
    "hf_beit_shared": partial(
        hf_tensors,
        "BeitForImageClassification",
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
        drop_path_rate=0.0,
    ),
}
for _name, _build in TRANSFORMERS.items():
    host(_name)(_build)
