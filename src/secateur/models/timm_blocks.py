"""Read the blocks of timm-style transformers: one branch per attention layer and per MLP."""

from typing import cast

from timm.layers import GluMlp, Mlp, SwiGLU
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from secateur.errors import UserError
from secateur.models.counting import attention_rates, mlp_rates
from secateur.models.modules import AttentionBlock, EmptyBlock, MlpBlock, SlimAttention
from secateur.models.places import AnyAttention, AnyMlp, Place, linear, place
from secateur.models.types import AttentionShape, Branch, GroupName, MlpShape

BLOCKS = (TimmBlock, ResPostBlock, AttentionBlock, MlpBlock, EmptyBlock)
MLPS = (Mlp, GluMlp, SwiGLU)


def attention_shape(attn: AnyAttention) -> AttentionShape:
    """Sizes of an attention layer."""
    if isinstance(attn, SlimAttention):
        return AttentionShape(heads=attn.num_heads, qk=attn.qk_dim, vo=attn.v_dim)
    return AttentionShape(heads=attn.num_heads, qk=attn.head_dim, vo=attn.head_dim)


def read_block(index: int, module: nn.Module, width: int, tokens: int) -> list[Branch]:
    """The branches of one block; UserError for kinds of blocks, attention or MLPs not known."""
    if type(module) not in BLOCKS:
        raise UserError(
            f"blocks.{index} is a {type(module).__name__}, whose attention and MLP do not write "
            "to the stream one after the other; only Block and ResPostBlock models are supported."
        )
    branches = []
    if (attn := place(module, "attn")) and not attn.is_stand_in:
        branches.append(_read_attention(index, attn, width, tokens))
    if (mlp := place(module, "mlp")) and not mlp.is_stand_in:
        branches.append(_read_mlp(index, mlp, width, tokens))
    return branches


def _read_attention(index: int, where: Place, width: int, tokens: int) -> Branch:
    path, attn = f"blocks.{index}.attn", where.module
    if type(attn) not in (Attention, SlimAttention):
        raise UserError(
            f"{path} is a {type(attn).__name__}, an attention layer that secateur cannot "
            "read; only timm's standard Attention is supported."
        )
    attn = cast(AnyAttention, attn)
    refusals: dict[GroupName, str] = {}
    if not isinstance(attn.q_norm, nn.Identity):
        refusals["qk"] = (
            "QK-norm normalises over the dims of a head, so removing some changes the others"
        )
    if getattr(attn, "gate", None) is not None:
        refusals |= dict.fromkeys(("qk", "vo", "heads"), "the attention output is gated")
    if not isinstance(getattr(attn, "norm", nn.Identity()), nn.Identity):
        refusals |= dict.fromkeys(
            ("qk", "vo", "heads"), "a norm over the attention output depends on every dim"
        )
    shape = attention_shape(attn)
    return Branch(
        id=path,
        kind="attention",
        block=index,
        width=width,
        tokens=tokens,
        shape=shape,
        refusals=refusals,
        writer_bias=attn.proj.bias is not None,
        **attention_rates(attn, shape, where.vectors, tokens),
    )


def _read_mlp(index: int, where: Place, width: int, tokens: int) -> Branch:
    path, mlp = f"blocks.{index}.mlp", where.module
    if type(mlp) not in MLPS:
        raise UserError(
            f"{path} is a {type(mlp).__name__}, an MLP that secateur cannot read; supported "
            f"are {', '.join(cls.__name__ for cls in MLPS)}."
        )
    mlp = cast(AnyMlp, mlp)
    refusals: dict[GroupName, str] = {}
    if not isinstance(mlp.norm, nn.Identity):
        refusals["hidden"] = "a norm over the hidden neurons depends on every one of them"
    return Branch(
        id=path,
        kind="mlp",
        block=index,
        width=width,
        tokens=tokens,
        shape=MlpShape(hidden=linear(mlp, "fc2").in_features),
        refusals=refusals,
        writer_bias=linear(mlp, "fc2").bias is not None,
        **mlp_rates(mlp, where.vectors, tokens),
    )
