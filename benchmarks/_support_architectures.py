"""The architectures of the support matrix by name, each with a way to build it small.

A row is added by its name: `LIBRARY:NAME` and a function that makes the model with random weights.
Plain encoders share one set of sizes; hierarchical ones have their own; where a class has no
arguments of size, its smallest published member stands for it.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import transformers
from torch import nn
from torchvision.models import get_model
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.hosts import HF, SIZES, TORCHVISION, WINDOWS

Build = Callable[[], nn.Module]
SHALLOW: dict[str, Any] = {**SIZES, "depth": 2, "mlp_ratio": 4}
STAGES: dict[str, Any] = {**WINDOWS, "img_size": 32, "mlp_ratio": 4}
"""Two stages with windows of four tokens."""

FEW_BLOCKS: dict[str, Any] = {"depths": (1, 1, 1, 2), "embed_dims": (8, 16, 24, 32), "num_vit": 1}
HYBRID: dict[str, Any] = {"embed_dim": 96, "depth": 6, "num_heads": 4}
WINDOWED: dict[str, Any] = {
    **SHALLOW,
    "num_heads": 2,
    "window_size": 2,
    "global_attn_indexes": (1,),
    "neck_chans": 8,
}
TIMM_PLAIN = (
    "vit_base_patch16_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_siglip_224",
    "vit_wee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "deit_base_distilled_patch16_224",
    "deit3_base_patch16_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "aimv2_large_patch14_224",
    "beit3_base_patch16_224",
    "beit_base_patch16_224",
    "eva_giant_patch14_224",
    "eva02_tiny_patch14_224",
    "eva02_base_patch14_224",
    "vit_base_patch16_dinov3",
    "vit_huge_plus_patch16_dinov3",
    "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_base_patch16_512",
    "vit_base_patch16_rope_224",
    "vit_base_patch16_rope_mixed_224",
    "vit_relpos_base_patch16_224",
    "vit_srelpos_small_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "convit_tiny",
)
TIMM_STAGED = ("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224")
TIMM_AS_PUBLISHED = (
    "efficientformerv2_s0",
    "vit_base_mci_224",
    "naflexvit_base_patch16_gap",
    "swin_s3_tiny_224",
    "tiny_vit_5m_224",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "maxvit_tiny_tf_224",
    "coatnet_0_224",
    "pvt_v2_b0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "levit_128s",
    "caformer_s18",
    "poolformer_s12",
    "fastvit_t8",
    "volo_d1_224",
    "crossvit_tiny_240",
    "tnt_s_patch16_224",
    "twins_svt_small",
    "pit_ti_224",
    "davit_tiny",
    "mvitv2_tiny",
    "gcvit_xxtiny",
    "nest_tiny",
    "coat_tiny",
    "efficientvit_b0",
    "efficientvit_m0",
    "visformer_tiny",
    "vitamin_small_224",
    "edgenext_xx_small",
)


def of_timm(name: str, **changes: Any) -> nn.Module:
    """A model of timm's registry."""
    return timm.create_model(name, pretrained=False, **changes)


LEVELS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 4.0,
}
REGISTERS: dict[str, Any] = {"num_register_tokens": 2}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 99,
}
PLAIN = HF | {"num_hidden_layers": 2, "intermediate_size": 128}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": PLAIN,
    "ViTModel": PLAIN,
    "ViTMAEModel": PLAIN,
    "ViTMSNForImageClassification": PLAIN,
    "DeiTForImageClassification": PLAIN,
    "DeiTForImageClassificationWithTeacher": PLAIN,
    "IJepaForImageClassification": PLAIN,
    "Dinov2ForImageClassification": PLAIN | {"mlp_ratio": 4},
    "Dinov2Model": PLAIN | {"mlp_ratio": 4, "use_swiglu_ffn": True},
    "Dinov2WithRegistersForImageClassification": PLAIN | REGISTERS | {"mlp_ratio": 4},
    "Dinov2WithRegistersModel": PLAIN | REGISTERS | {"mlp_ratio": 4},
    "DINOv3ViTModel": PLAIN | REGISTERS | {"pos_embed_rescale": None},
    "CLIPForImageClassification": PLAIN,
    "CLIPVisionModel": PLAIN,
    "CLIPVisionModelWithProjection": PLAIN | {"projection_dim": 16},
    "CLIPModel": PLAIN,
    "SiglipForImageClassification": PLAIN,
    "SiglipVisionModel": PLAIN,
    "SiglipModel": PLAIN,
    "Siglip2VisionModel": PLAIN | {"num_patches": 16},
    "Aimv2VisionModel": PLAIN,
    "BeitForImageClassification": PLAIN | {"use_relative_position_bias": True},
    "BeitModel": PLAIN | {"use_shared_relative_position_bias": True},
    "Data2VecVisionForImageClassification": PLAIN | {"use_relative_position_bias": True},
    "YolosModel": PLAIN | {"num_detection_tokens": 4, "image_size": [32, 32]},
    "BlipVisionModel": PLAIN,
    "SamVisionModel": PLAIN
    | {
        "num_attention_heads": 2,
        "image_size": 64,
        "window_size": 4,
        "global_attn_indexes": [1],
        "output_channels": 8,
        "mlp_dim": 64,
    },
    "SwinForImageClassification": LEVELS,
    "Swinv2ForImageClassification": LEVELS,
    "HieraForImageClassification": {"embed_dim": 32, "depths": [1, 1, 1, 1]},
    "PvtForImageClassification": {},
    "PvtV2ForImageClassification": {},
    "SegformerForImageClassification": {},
    "MobileViTForImageClassification": {},
    "LevitForImageClassification": {},
    "PoolFormerForImageClassification": {},
    "CvtForImageClassification": {},
    "DPTForDepthEstimation": PLAIN
    | {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
    },
    "DepthAnythingForDepthEstimation": {},
}


def of_transformers(cls: str, settings: dict[str, Any]) -> nn.Module:
    """A model of transformers by the name of its class and its configuration's settings."""
    host = getattr(transformers, cls)
    config = host.config_class
    if {"vision_config", "text_config"} <= config.sub_configs.keys():
        made = config(vision_config=settings, text_config=TEXT)
        made.num_labels = SIZES["num_classes"]
    else:
        made = config(**settings, num_labels=SIZES["num_classes"])
    model: nn.Module = host(made)
    return model


def wrapped() -> nn.Module:
    """A model of timm in the wrapper of transformers."""
    sizes = {key: value for key, value in SHALLOW.items() if key != "num_classes"}
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=sizes, num_labels=SIZES["num_classes"]
    )
    return transformers.TimmWrapperForImageClassification(config)


SMALL = TORCHVISION | {"num_layers": 2, "mlp_dim": 128}
TWO_STAGES: dict[str, Any] = {
    "patch_size": [2, 2],
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],
    "mlp_ratio": 4.0,
    "num_classes": 10,
}
SECOND: dict[str, Any] = {
    "block": SwinTransformerBlockV2,
    "downsample_layer": PatchMergingV2,
}


def open_clip_tower(**changes: Any) -> nn.Module:
    """An image tower of open_clip, by its class."""
    tower = import_module("open_clip.transformer").VisionTransformer
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 4}
    model: nn.Module = tower(**sizes, mlp_ratio=4.0, output_dim=16, **changes)
    return model


def open_clip_whole() -> nn.Module:
    """A whole CLIP of open_clip, image and text tower."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 4, "layers": 2}
    clip: nn.Module = import_module("open_clip.model").CLIP(16, vision, text)
    return clip


ARCHITECTURES: dict[str, Build] = {
    **{f"timm:{name}": partial(of_timm, name, **SHALLOW) for name in TIMM_PLAIN},
    **{f"timm:{name}": partial(of_timm, name, **STAGES) for name in TIMM_STAGED},
    "timm:samvit_base_patch16": partial(of_timm, "samvit_base_patch16", **WINDOWED),
    "timm:efficientformer_l1": partial(of_timm, "efficientformer_l1", **FEW_BLOCKS),
    "timm:vit_tiny_r_s16_p8_224": partial(of_timm, "vit_tiny_r_s16_p8_224", **HYBRID),
    **{f"timm:{name}": partial(of_timm, name) for name in TIMM_AS_PUBLISHED},
    **{f"hf:{cls}": partial(of_transformers, cls, given) for cls, given in TRANSFORMERS.items()},
    "hf:TimmWrapperForImageClassification": wrapped,
    "torchvision:vit_b_16": partial(TorchvisionViT, **SMALL),
    "torchvision:swin_t": partial(TorchvisionSwin, **TWO_STAGES),
    "torchvision:swin_v2_t": partial(TorchvisionSwin, **TWO_STAGES, **SECOND),
    "torchvision:maxvit_t": partial(get_model, "maxvit_t"),
    "open_clip:ViT-B-16 (image tower)": open_clip_tower,
    "open_clip:coca_ViT-B-32 (image tower)": partial(
        open_clip_tower, attentional_pool=True, attn_pooler_heads=4, output_tokens=True
    ),
    "open_clip:ViT-B-16 (both towers)": open_clip_whole,
}
"""Builders by name, libraries together."""
