"""Tiny random hosts of every kind, and a way to make each branch of them another size."""

from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from timm.layers import SwiGLU
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from secateur.models.family import family_of
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights

SIZES = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 10,
}

HOSTS: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", **SIZES),
    "no_writer_bias": lambda: timm.create_model("vit_tiny_patch16_224", proj_bias=False, **SIZES),
    "deit_distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **SIZES),
    "deit3": lambda: timm.create_model("deit3_small_patch16_224", **SIZES),
    "dinov2_registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **SIZES),
    "dinov2_swiglu": lambda: timm.create_model("vit_giant_patch14_dinov2", **SIZES),
    "clip": lambda: timm.create_model("vit_base_patch16_clip_quickgelu_224.openai", **SIZES),
    "siglip": lambda: timm.create_model("vit_base_patch16_siglip_224", **SIZES),
    "class": lambda: VisionTransformer(**SIZES),
    "class_swiglu": lambda: VisionTransformer(**SIZES, mlp_layer=SwiGLU, act_layer=nn.SiLU),
    "class_post_norm": lambda: VisionTransformer(
        **SIZES, block_fn=ResPostBlock, init_values=0.1, class_token=False, global_pool="avg"
    ),
}


def host(name: str = "vit") -> nn.Module:
    """A tiny model whose every parameter is random, so that each one shows in the outputs."""
    torch.manual_seed(sum(name.encode()))
    model = HOSTS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(model: nn.Module) -> Tensor:
    """Three fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    size = (3, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    return torch.randn(size, generator=generator)


def _sliced(weights: BranchWeights, index: int) -> BranchWeights:
    """Fewer heads, query/key dims and value dims, or neurons; each layer differently."""
    if isinstance(weights, MlpWeights):
        keep = torch.arange(0, weights.w2_DF.shape[1], 2)[: 20 + index]
        return replace(
            weights,
            readers_FD=tuple(w[keep] for w in weights.readers_FD),
            reader_biases_F=tuple(None if b is None else b[keep] for b in weights.reader_biases_F),
            w2_DF=weights.w2_DF[:, keep],
        )
    h, k, v = 3 - index % 2, 4 + index, 6
    return replace(
        weights,
        q_HKD=weights.q_HKD[-h:, :k],
        k_HKD=weights.k_HKD[-h:, :k],
        v_HVD=weights.v_HVD[-h:, -v:],
        o_DHV=weights.o_DHV[:, -h:, -v:],
        qb_HK=None if weights.qb_HK is None else weights.qb_HK[-h:, :k],
        kb_HK=None if weights.kb_HK is None else weights.kb_HK[-h:, :k],
        vb_HV=None if weights.vb_HV is None else weights.vb_HV[-h:, -v:],
    )


def shrink_(model: nn.Module) -> nn.Module:
    """Other shapes everywhere; block 1 loses its attention, block 2 its MLP, block 3 both."""
    family = family_of(model)
    for branch in family.read(model).branches:
        family.assign_(model, branch, _sliced(family.weights(model, branch), branch.block))
    family.drop_(model, {"blocks.1.attn", "blocks.2.mlp", "blocks.3.attn", "blocks.3.mlp"})
    return model.eval()


def add_writer_biases_(model: nn.Module) -> nn.Module:
    """Constants in the writers' biases, as repair puts them there."""
    family = family_of(model)
    for branch in family.read(model).branches:
        weights = family.weights(model, branch)
        constant = torch.linspace(-1, 1, branch.width)
        if isinstance(weights, AttentionWeights):
            ob = constant if weights.ob_D is None else weights.ob_D + constant
            family.assign_(model, branch, replace(weights, ob_D=ob))
        else:
            b2 = constant if weights.b2_D is None else weights.b2_D + constant
            family.assign_(model, branch, replace(weights, b2_D=b2))
    return model.eval()
