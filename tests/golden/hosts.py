"""Tiny models with seeded random weights, built with timm alone, whose pruning is recorded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.efficientformer import Attention as BiasedAttention
from timm.models.efficientformer import EfficientFormer, MetaBlock1d
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 4,
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


def efficientformer(**changes: Any) -> nn.Module:
    """An EfficientFormer of two stages on 56 x 56 pixels, with smaller attention."""
    sizes: dict[str, Any] = {"depths": (2, 4), "embed_dims": (16, 24), "mlp_ratios": 2}
    model = EfficientFormer(num_classes=10, num_vit=3, **sizes | changes)
    for block in model.stages[-1].blocks:
        if isinstance(block, MetaBlock1d):
            width = block.token_mixer.proj.out_features
            block.token_mixer = BiasedAttention(width, 8, num_heads=4, attn_ratio=2, resolution=7)
    images = {"input_size": (3, 56, 56), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model.pretrained_cfg = images | {"crop_pct": 0.9, "interpolation": "bicubic"}
    return model


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "vit_qk_norm": partial(vit, qk_norm=True, num_heads=2),
    "vit_post_norm": partial(vit, block_fn=ResPostBlock, init_values=0.1),
    "vit_average_pool": partial(vit, class_token=False, global_pool="avg"),
    "deit_distilled": partial(VisionTransformerDistilled, **SIZES),
    "deit3": partial(named, "deit3_small_patch16_224"),
    "dinov2": partial(
        named, "vit_small_patch14_reg4_dinov2", mlp_layer=SwiGLUPacked, act_layer=nn.SiLU
    ),
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
    "efficientformer": efficientformer,
}
PIXELS = {"efficientformer": (3, 56, 56), "digits": (1, 8, 8)}
"""Sizes of input images (C, H, W) of hosts that take others than 3 x 32 x 32."""


def build(name: str) -> nn.Module:
    """A fresh host in evaluation mode; every parameter is random, the same at each call."""
    model = HOSTS[name]()
    randomise_(model, seed=sum(name.encode()))
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        settle_(model, images_for(name, 8, seed=5))
    return model.eval()


def images_for(name: str, count: int, seed: int) -> Tensor:
    """Random images (count, C, H, W) of the size that a host takes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *PIXELS.get(name, (3, 32, 32)), generator=generator)


def labels_for(count: int, seed: int) -> Tensor:
    """Random labels (count,) of ten classes."""
    return torch.randint(10, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise_(model: nn.Module, seed: int) -> None:
    """Random values for all parameters, also for those that begin as zeros, ones or nearly so."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("bias", "token", "pos_embed", "latent")):
            parameter.copy_(0.4 * noise)
        elif parameter.ndim < 2:
            parameter.copy_(1 + 0.3 * noise)
        else:
            parameter.copy_(1.3 * noise / parameter[0].numel() ** 0.5)


@torch.no_grad()
def settle_(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of some images, as training would."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(images)
    for norm in norms:
        norm.momentum = 0.1
