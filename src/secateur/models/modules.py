"""The few modules of our own, used where the host's classes cannot express what is left.

Legend: B batch, N tokens, D residual width, H heads, K query/key dims, V value dims per head.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, compiler, nn
from torch.fx import Proxy

from secateur.models.derived.keyless import KeylessLinear as KeylessLinear
from secateur.models.derived.scripting import write_attention_, write_linear_
from secateur.models.statement import Call, RelativeVectors

Rotate = Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]


class SlimAttention(nn.Module):
    """Self-attention whose query/key width may differ from its value width.

    One fused product gives queries, keys and values; the softmax scale is the dense model's and
    is passed explicitly, since the default of scaled_dot_product_attention would follow the
    pruned width. `call` says how the host calls it. `places_NN` says which of the `entries` of a
    table of position biases belongs to which pair of tokens, in a buffer called `index`: under the
    host's own name, a rebuild of the host has these numbers. Of `relative` position vectors the
    module beside them has the parameters. Gated hosts are refused when a model is read, so gates do
    not exist here.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qk_dim: int,
        v_dim: int,
        *,
        scale: float,
        dim_out: int | None = None,
        key_bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        context_norm: nn.Module | None = None,
        entries: int = 0,
        places_NN: Tensor | None = None,
        index: str = "position_index",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        fused_attn: bool = True,
        call: Call = Call(),  # noqa: B008 (frozen)
        rotary: tuple[str, Rotate] | None = None,
        relative: tuple[RelativeVectors, nn.Module] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.v_dim = num_heads, qk_dim, v_dim
        self.scale, self.fused_attn = scale, fused_attn
        self.call, self.rotary, self.index = call, rotary, index
        self.relative = None
        if relative is not None and (stated := relative[0].present(relative[1])) is not None:
            self.relative = stated
            for name in (stated.rows, stated.columns):
                self.register_parameter(name, copy.deepcopy(getattr(relative[1], name)))
        inner = num_heads * (2 * qk_dim + v_dim)
        packed = nn.Linear if key_bias else KeylessLinear
        self.qkv = packed(dim, inner, device=device, dtype=dtype)
        if isinstance(self.qkv, KeylessLinear):
            self.qkv.turned = rotary is not None or k_norm is not None
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.norm = context_norm or nn.Identity()
        self.position_table: nn.Parameter | None = None
        if places_NN is not None:
            table_HT = torch.empty(num_heads, entries, device=device, dtype=dtype)
            self.position_table = nn.Parameter(table_HT)
            self.register_buffer(index, places_NN, persistent=False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * v_dim, dim_out or dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, *args: Any, **given: Any) -> Any:
        """Attend; inputs and output as `call` says. Masks as in scaled_dot_product_attention.

        With `pair`, weights (B, H, N, N) are given beside the output unless the kernel is fused.
        `log_sizes` (B, 1, 1, N) is added to the logits; `seen` is told the mean keys of all heads.
        """
        x, given = self.call.bound(args, given)
        sides = x.shape[1:3]
        q_BHNK, k_BHNK, v_BHNV = self.project(x.flatten(1, 2) if self.call.grid else x)
        if self.rotary is not None and given.get(self.rotary[0]) is not None:
            q_BHNK, k_BHNK = self.rotary[1](q_BHNK, k_BHNK, given[self.rotary[0]])
        if (seen := given.get("seen")) is not None:
            seen["keys"] = k_BHNK.mean(1)
        mask = None if self.call.mask is None else given.get(self.call.mask)
        if self.relative is not None:
            mask = self._relative(self.relative, q_BHNK, sides[0], sides[1])
        if (log_sizes := given.get("log_sizes")) is not None:
            mask = log_sizes if mask is None else _added(log_sizes, mask)
        causal = bool(given.get("is_causal", False))
        out_BND, weights = self.attend(q_BHNK, k_BHNK, v_BHNV, mask, causal)
        out_BND = out_BND.unflatten(1, sides) if self.call.grid else out_BND
        return (out_BND, weights) if self.call.pair else out_BND

    def _relative(self, stated: RelativeVectors, q_BHNK: Tensor, rows: int, columns: int) -> Tensor:
        """q · R of rows and columns, for each pair of tokens (B, H, N, N)."""
        r_RRK = stated.vectors(rows, rows, getattr(self, stated.rows))
        c_CCK = stated.vectors(columns, columns, getattr(self, stated.columns))
        q_BHRCK = q_BHNK.unflatten(2, (rows, columns))
        by_row = torch.einsum("bhrck,rsk->bhrcs", q_BHRCK, r_RRK)
        by_column = torch.einsum("bhrck,cdk->bhrcd", q_BHRCK, c_CCK)
        bias = by_row[..., :, None] + by_column[..., None, :]
        return bias.flatten(4, 5).flatten(2, 3)

    def project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by head, normed."""
        qk, vo = self.num_heads * self.qk_dim, self.num_heads * self.v_dim
        q, k, v = self.qkv(x_BND).split([qk, qk, vo], dim=-1)
        q_BHNK = q.unflatten(-1, (self.num_heads, self.qk_dim)).transpose(1, 2)
        k_BHNK = k.unflatten(-1, (self.num_heads, self.qk_dim)).transpose(1, 2)
        v_BHNV = v.unflatten(-1, (self.num_heads, self.v_dim)).transpose(1, 2)
        return self.q_norm(q_BHNK), self.k_norm(k_BHNK), v_BHNV

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The update of the stream (B, N, D), and the weights where they are worked out."""
        mask = self._added(mask, q)
        weights: Tensor | None = None
        if self.fused_attn:
            out_BHNV = self._fused(q, k, v, mask, is_causal)
        else:
            out_BHNV, weights = self._attend(q, k, v, mask, is_causal)
        context_BND = self.norm(out_BHNV.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(context_BND)), weights

    def _added(self, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Position biases and the mask as one; that of windows (W, N, N) is for each image."""
        by_window = False
        if mask is not None:
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                by_window = mask.ndim == 3
            else:
                by_window = not isinstance(mask, Proxy) and mask.ndim == 3
            mask = mask[:, None] if by_window else mask
        if self.position_table is not None:
            bias_HNN = self.position_table[:, self.get_buffer(self.index)]
            mask = bias_HNN if mask is None else _added(bias_HNN, mask)
        if by_window and mask is not None:
            mask = mask.repeat(q.shape[0] // mask.shape[0], 1, 1, 1)
        return mask

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        # WHY: on the CPU torch has a fast kernel for equal widths only; zeros change no product.
        # A graph goes to other devices and runtimes, where they would only be work.
        missing = self.qk_dim - self.v_dim
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            pads = q.device.type == "cpu"
        else:
            traced = compiler.is_exporting() or isinstance(q, Proxy)
            pads = not traced and q.device.type == "cpu"
        if pads and missing > 0:
            v = F.pad(v, (0, missing))
        elif pads and missing < 0:
            q, k = F.pad(q, (0, -missing)), F.pad(k, (0, -missing))
        chance = self.attn_drop.p if self.training else 0.0
        out_BHNV = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, dropout_p=chance, is_causal=is_causal, scale=self.scale
        )
        return out_BHNV[..., : self.v_dim] if pads and missing > 0 else out_BHNV

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> tuple[Tensor, Tensor]:
        logits_BHNN = (q * self.scale) @ k.transpose(-2, -1)
        if is_causal:
            future = torch.full_like(logits_BHNN[0, 0], float("-inf")).triu_(1)
            logits_BHNN = logits_BHNN + future
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            logits_BHNN = logits_BHNN.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            logits_BHNN = logits_BHNN + attn_mask
        weights_BHNN: Tensor = self.attn_drop(logits_BHNN.softmax(dim=-1))
        return weights_BHNN @ v, weights_BHNN

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script."""
        own = self.call.grid or self.relative is not None
        return self if own else write_attention_(self, self.call, self.rotary)


def _added(bias: Tensor, mask: Tensor) -> Tensor:
    """A bias of logits and a mask, additive or boolean, as one."""
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask


class LinearStandIn(nn.Linear):
    """A linear layer in the place of a dropped attention layer or MLP and of those right behind it.

    It is no branch: like what stands between branches in other families, it is not pruned.
    """

    def __init__(self, columns: int, rows: int, *, call: Call = Call()) -> None:  # noqa: B008
        super().__init__(columns, rows, device="meta")
        self.call = call

    def forward(self, *args: Any, **given: Any) -> Any:
        """Map every token; the arguments of an attention layer have no meaning here."""
        x_BND, _ = self.call.bound(args, given)
        out_BND = F.linear(x_BND, self.weight, self.bias)
        return (out_BND, None) if self.call.pair else out_BND

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script."""
        return write_linear_(self, self.call)


class ShiftedReLU(nn.ReLU):
    """relu(x) + bias on a grid: it carries a constant of the stream that nothing earlier can."""

    def __init__(self, bias_D: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_D)

    def forward(self, grid_BDHW: Tensor) -> Tensor:
        """The sum of both."""
        return super().forward(grid_BDHW) + self.bias[:, None, None]
