"""timm's plain VisionTransformer: ViT, DeiT, DeiT-III, DINOv2, hybrids with a network as stem."""

from dataclasses import replace

from timm.layers import AttentionPoolPrr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.models.family import state
from secateur.models.statement import (
    AttentionLayer,
    Call,
    Holds,
    MlpLayer,
    Residual,
    Statement,
    Stem,
    Tail,
)

ATTENTION = AttentionLayer(
    path="attn",
    classes=("Attention",),
    sizes={"attn_dim": "all_vo"},
    qk_norm=("q_norm", "k_norm"),
    context_norm="norm",
    gate="gate",
    dropout="attn_drop",
    dropout_behind="proj_drop",
    call=Call(takes=("is_causal",)),
    holds=Holds.HEADS,
)
MLP = MlpLayer(path="mlp", classes=("Mlp", "GluMlp"), readers=("fc1",), writer="fc2", norm="norm")
MLPS = (MLP, replace(MLP, classes=("SwiGLU",), readers=("fc1_g", "fc1_x")))


def embed(vit: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """Patches, prefix tokens and positions, as in `forward_features`."""
    x_BND: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images_BCHW))))
    return x_BND


def image(vit: VisionTransformer) -> tuple[int, int, int]:
    """Channels, height and width; of a hybrid, its convolutional network sees the channels."""
    first = next(m for m in vit.patch_embed.modules() if isinstance(m, nn.Conv2d))
    return (first.in_channels, *vit.patch_embed.img_size)


def head(vit: VisionTransformer, stream_BND: Tensor) -> Tensor:
    """Final norm, pooling and classifiers."""
    return vit.forward_head(vit.norm(stream_BND))


def pool_macs(vit: VisionTransformer) -> int:
    """Products of a pooling head that attends (SigLIP)."""
    pool = vit.get_submodule("attn_pool")
    prefix = vit.num_prefix_tokens if getattr(vit, "pool_include_prefix", True) else 0
    seen = int(vit.patch_embed.num_patches) + prefix
    # One latent query attends to all tokens, or (PRR) each token does.
    macs = 2 * (seen if isinstance(pool, AttentionPoolPrr) else 1) * seen * vit.embed_dim
    for name, module in pool.named_modules():
        if isinstance(module, nn.Linear):
            macs += module.weight.numel() * (seen if name.endswith("kv") else 1)
    return macs


def reads(vit: VisionTransformer) -> int | None:
    """The class token, and that of distillation, unless all tokens are pooled or given out."""
    return 1 + hasattr(vit, "head_dist") if vit.global_pool == "token" else None


def resized(vit: VisionTransformer, _stage: int, width: int) -> None:
    """Tell timm's feature extraction the width."""
    for info in vit.feature_info:
        info["num_chs"] = width


state(
    Statement(
        name="timm_vit",
        title="timm VisionTransformer (ViT, DeiT, DeiT-III, DINOv2)",
        examples=(
            "timm:vit_base_patch16_224",
            "timm:deit_base_distilled_patch16_224",
            "timm:deit3_base_patch16_224",
            "timm:vit_base_patch14_reg4_dinov2",
            "timm:vit_giant_patch14_dinov2",
            "timm:vit_base_patch16_siglip_224",
            "timm:vit_small_r26_s32_224",
        ),
        hosts=("timm.models.vision_transformer:VisionTransformer",),
        blocks="blocks.*",
        residuals={
            "Block": (
                Residual(layers=(ATTENTION,), norm="norm1", scale="ls1.gamma", drop="drop_path1"),
                Residual(layers=MLPS, norm="norm2", scale="ls2.gamma", drop="drop_path2"),
            ),
            "ResPostBlock": (
                Residual(layers=(ATTENTION,), norm="norm1", norm_behind=True, drop="drop_path1"),
                Residual(layers=MLPS, norm="norm2", norm_behind=True, drop="drop_path2"),
            ),
        },
        stem=Stem(
            writer="patch_embed.proj",
            patch_norm="patch_embed.norm?",
            norm="norm_pre",
            positions="pos_embed",
            tokens=("cls_token", "dist_token?", "reg_token"),
            before="patch_embed.backbone?",
            classes={"patch_embed": ("PatchEmbed", "HybridEmbed"), "patch_embed.proj": ("Conv2d",)},
        ),
        tail=Tail(
            norms=("norm", "fc_norm"),
            classifiers=("head", "head_dist?"),
            pool="attn_pool",
            pool_macs=pool_macs,
            reads=reads,
        ),
        embed=embed,
        head=head,
        image=image,
        grid=lambda vit: tuple(vit.patch_embed.grid_size),
        prefix=lambda vit: int(vit.num_prefix_tokens),
        sizes=("embed_dim", "num_features", "head_hidden_size"),
        resized=resized,
        fused="fused_attn",
        recomputes="grad_checkpointing",
    )
)
