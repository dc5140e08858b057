"""The exact class-token tail: behind the last attention, only tokens that the head reads are
computed.

Where a head reads the first tokens of the stream alone, no other token of the last attention layer
and of what follows it has an effect. Keys and values are still those of all tokens; without
rotary embeddings and key norms their matrices move to the other side of the products:
q W_k yᵀ = (q W_k) yᵀ, and softmax(·) (y W_vᵀ) = (softmax(·) y) W_vᵀ, whose biases are a constant per
query, which the softmax ignores, and b_v.

Legend: B batch, N tokens, R tokens that the head reads, D residual width, H heads, K query/key
dims, V value dims per head.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.modules import PartialBlock, SlimAttention
from secateur.models.statement import Residual

Reads = Callable[[Any], int | None]


class TailBlock(PartialBlock):
    """The block of the last attention layer, which leaves R tokens of the stream of N.

    It does so only while the model's own forward pass runs in evaluation mode, without a mask:
    whoever trains the model or calls its blocks, for features of all tokens, gets all of them.
    `reads(model)` says how many tokens the head reads at present. With the attribute
    `recomputes` of the model, blocks run again in the backward pass, when the forward pass is over.
    """

    def __init__(
        self,
        block: nn.Module,
        residuals: tuple[Residual, ...],
        kept: tuple[str, ...],
        *,
        rows: int,
        reads: Reads,
        recomputes: str | None,
    ) -> None:
        super().__init__(block, residuals, kept)
        self.rows: Final = rows
        self.reads, self.recomputes = reads, recomputes
        self.enabled, self.narrow = True, False

    def watch_(self, model: nn.Module) -> None:
        """Narrow the stream in the forward passes of `model`, and of no other tail in it."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), TailBlock):
                    del hooks[number]
                    model._forward_hooks_always_called.pop(number, None)
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, model: nn.Module, _images: object) -> None:
        """Before the forward pass of the whole model."""
        again = torch.is_grad_enabled() and getattr(model, self.recomputes or "", False) is True
        self.narrow = self.enabled and not self.training and not again
        self.narrow = self.narrow and (self.reads(model) or self.rows + 1) <= self.rows

    def end(self, *_passed: object) -> None:
        """After it, also where it failed."""
        self.narrow = False

    def forward(self, x: Tensor, *more: Any, **given: Any) -> Tensor:
        """All N tokens, or the first R in a forward pass of the whole model."""
        if not self.narrow or any(value is not None and value is not False for value in more):
            return super().forward(x, *more, **given)
        masks = [residual.layers[0].call.mask for residual in self.steps]
        if given.get("is_causal") or any(given.get(mask) is not None for mask in masks if mask):
            return super().forward(x, *more, **given)
        return self.first(x, given)

    def first(self, x_BND: Tensor, given: Mapping[str, Any]) -> Tensor:
        """The first R tokens (B, R, D) behind the block."""
        if not any(self._attends(residual) for residual in self.steps):
            x_BND = x_BND[:, : self.rows]
        for residual in self.steps:
            update_BRD = self._update(residual, x_BND, given)
            if self._attends(residual):
                x_BND = x_BND[:, : self.rows]
            x_BND = x_BND + update_BRD
        return x_BND

    def _attends(self, residual: Residual) -> bool:
        return isinstance(self.get_submodule(residual.path), SlimAttention)

    def _layer(self, residual: Residual, x: Tensor, given: Mapping[str, Any]) -> Any:
        attn = self.get_submodule(residual.path)
        if self.narrow and isinstance(attn, SlimAttention):
            return attend_first(attn, x, self.rows, given)
        return super()._layer(residual, x, given)


class TailAlone(nn.Module):
    """One step of a tail on its own: an attention layer from N to R tokens, a layer on R tokens."""

    def __init__(self, block: TailBlock, residual: Residual) -> None:
        super().__init__()
        kept = (residual.path,)
        reads, recomputes = block.reads, block.recomputes
        self.block = TailBlock(
            block, block.residuals, kept, rows=block.rows, reads=reads, recomputes=recomputes
        )
        self.block.narrow = True

    def forward(self, x_BND: Tensor, **given: Any) -> Tensor:
        """The first R tokens (B, R, D) behind the step."""
        return self.block.first(x_BND, given)


def moves_keys(attn: SlimAttention) -> bool:
    """Whether keys are a linear map of what is read, so that their matrix can meet the queries."""
    norms = (attn.q_norm, attn.k_norm)
    return attn.rotary is None and all(isinstance(norm, nn.Identity) for norm in norms)


def attend_first(attn: SlimAttention, x_BND: Tensor, rows: int, given: Mapping[str, Any]) -> Any:
    """What `attn` gives at the first `rows` tokens, in evaluation mode and without masks."""
    heads, qk, vo = attn.num_heads, attn.qk_dim, attn.v_dim
    parts = [heads * qk, heads * qk, heads * vo]
    wq, wk, wv = attn.qkv.weight.split(parts)
    bias = attn.qkv.bias
    bq, bk, bv = (None, None, None) if bias is None else bias.split(parts)
    wk_HKD, wv_HVD = wk.unflatten(0, (heads, qk)), wv.unflatten(0, (heads, vo))

    def by_head(t_BNC: Tensor) -> Tensor:
        return t_BNC.unflatten(-1, (heads, qk)).transpose(1, 2)

    if moves_keys(attn):
        q_BHRK = by_head(F.linear(x_BND[:, :rows], wq, bq))
        moved_BRD = ((q_BHRK * attn.scale) @ wk_HKD).flatten(1, 2)
        logits_BRN = moved_BRD @ x_BND.transpose(1, 2)
    else:
        q_BHNK = attn.q_norm(by_head(F.linear(x_BND, wq, bq)))
        k_BHNK = attn.k_norm(by_head(F.linear(x_BND, wk, bk)))
        if attn.rotary is not None and given.get(attn.rotary[0]) is not None:
            q_BHNK, k_BHNK = attn.rotary[1](q_BHNK, k_BHNK, given[attn.rotary[0]])
        q_BHRK = q_BHNK[:, :, :rows] * attn.scale
        logits_BRN = (q_BHRK @ k_BHNK.transpose(-2, -1)).flatten(1, 2)
    mean_BHRD = (logits_BRN.softmax(dim=-1) @ x_BND).unflatten(1, (heads, rows))
    out_BHRV = mean_BHRD @ wv_HVD.transpose(1, 2)
    if bv is not None:
        out_BHRV = out_BHRV + bv.unflatten(0, (heads, 1, vo))
    out_BRD = attn.proj(out_BHRV.transpose(1, 2).flatten(2))
    return (out_BRD, None) if attn.call.pair else out_BRD


def tail_of(model: nn.Module) -> TailBlock | None:
    """The tail of a model; None where it has none."""
    return next((module for module in model.modules() if isinstance(module, TailBlock)), None)


@contextmanager
def all_tokens(model: nn.Module) -> Iterator[None]:
    """Compute every token in all layers, for whoever looks into them."""
    tails = [m for m in model.modules() if isinstance(m, TailBlock) and m.enabled]
    for tail in tails:
        tail.enabled = False
    try:
        yield
    finally:
        for tail in tails:
            tail.enabled = True
