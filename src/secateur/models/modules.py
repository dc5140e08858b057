"""The few modules of our own, used where the host's class cannot express a shape.

Legend: B batch, N tokens, D residual width, H heads, K query/key dims, V value dims per head.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, compiler, nn


class SlimAttention(nn.Module):
    """Self-attention whose query/key width may differ from its value width.

    One fused product gives queries, keys and values; the softmax scale is the dense model's and
    is passed explicitly, since the default of scaled_dot_product_attention would follow the
    pruned width. Parameter names are those of timm's `Attention`. Gated and scale-normed hosts
    are refused when a model is read, so neither exists here.
    """

    fused_attn: bool

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_dim: int,
        v_dim: int,
        *,
        scale: float,
        dim_out: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        fused_attn: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qk_dim = qk_dim
        self.v_dim = v_dim
        self.scale = scale
        self.fused_attn = fused_attn
        inner = num_heads * (2 * qk_dim + v_dim)
        self.qkv = nn.Linear(dim, inner, bias=qkv_bias, device=device, dtype=dtype)
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(
            num_heads * v_dim, dim_out or dim, bias=proj_bias, device=device, dtype=dtype
        )
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend; masks as in torch's scaled_dot_product_attention."""
        batch, tokens, _ = x_BND.shape
        qk = self.num_heads * self.qk_dim
        q, k, v = self.qkv(x_BND).split([qk, qk, self.num_heads * self.v_dim], dim=-1)
        q_BHNK = self.q_norm(q.unflatten(-1, (self.num_heads, self.qk_dim)).transpose(1, 2))
        k_BHNK = self.k_norm(k.unflatten(-1, (self.num_heads, self.qk_dim)).transpose(1, 2))
        v_BHNV = v.unflatten(-1, (self.num_heads, self.v_dim)).transpose(1, 2)
        if self.fused_attn:
            out_BHNV = self._fused(q_BHNK, k_BHNK, v_BHNV, attn_mask, is_causal)
        else:
            out_BHNV = self._attend(q_BHNK, k_BHNK, v_BHNV, attn_mask, is_causal)
        context_BND = out_BHNV.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.v_dim)
        out_BND: Tensor = self.proj_drop(self.proj(context_BND))
        return out_BND

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        # WHY: on the CPU torch has a fast kernel for equal widths only; zeros change no product.
        # An exported graph goes to other devices and runtimes, where they would only be work.
        narrower = self.v_dim < self.qk_dim
        if self.v_dim != self.qk_dim and q.device.type == "cpu" and not compiler.is_exporting():
            missing = abs(self.v_dim - self.qk_dim)
            if narrower:
                v = F.pad(v, (0, missing))
            else:
                q, k = F.pad(q, (0, missing)), F.pad(k, (0, missing))
        out_BHNV = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=is_causal,
            scale=self.scale,
        )
        return out_BHNV[..., : self.v_dim] if narrower else out_BHNV

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        logits_BHNN = (q * self.scale) @ k.transpose(-2, -1)
        if is_causal:
            tokens = q.shape[-2]
            logits_BHNN = logits_BHNN + logits_BHNN.new_full((tokens, tokens), float("-inf")).triu_(
                1
            )
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            logits_BHNN = logits_BHNN.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            logits_BHNN = logits_BHNN + attn_mask
        weights_BHNN: Tensor = self.attn_drop(logits_BHNN.softmax(dim=-1))
        return weights_BHNN @ v


class LinearStandIn(nn.Linear):
    """A linear layer in the place of a dropped attention layer or MLP and of those right behind it.

    It is no branch: like what stands between branches in other families, it is not pruned.
    """

    def forward(
        self, x_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Map every token; the attention arguments have no meaning here."""
        return F.linear(x_BND, self.weight, self.bias)


class AttentionBlock(nn.Module):
    """What remains of a pre- or post-norm block whose MLP was dropped."""

    def __init__(self, block: nn.Module, *, post_norm: bool) -> None:
        super().__init__()
        self.post_norm: Final[bool] = post_norm
        self.norm1, self.attn = block.get_submodule("norm1"), block.get_submodule("attn")
        self.ls1 = getattr(block, "ls1", None) or nn.Identity()
        self.drop_path1 = block.get_submodule("drop_path1")

    def forward(
        self, x_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Add the attention layer's update to the stream."""
        if self.post_norm:
            update = self.norm1(self.attn(x_BND, attn_mask=attn_mask, is_causal=is_causal))
        else:
            update = self.attn(self.norm1(x_BND), attn_mask=attn_mask, is_causal=is_causal)
        added_BND: Tensor = self.drop_path1(self.ls1(update))
        return x_BND + added_BND


class MlpBlock(nn.Module):
    """What remains of a pre- or post-norm block whose attention layer was dropped."""

    def __init__(self, block: nn.Module, *, post_norm: bool) -> None:
        super().__init__()
        self.post_norm: Final[bool] = post_norm
        self.norm2, self.mlp = block.get_submodule("norm2"), block.get_submodule("mlp")
        self.ls2 = getattr(block, "ls2", None) or nn.Identity()
        self.drop_path2 = block.get_submodule("drop_path2")

    def forward(
        self, x_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Add the MLP's update to the stream; the attention arguments have no meaning here."""
        update = self.norm2(self.mlp(x_BND)) if self.post_norm else self.mlp(self.norm2(x_BND))
        added_BND: Tensor = self.drop_path2(self.ls2(update))
        return x_BND + added_BND


class EmptyBlock(nn.Identity):
    """What remains of a block without branches: the stream passes; takes a block's arguments."""

    def forward(
        self, x_BND: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the stream unchanged."""
        return x_BND
