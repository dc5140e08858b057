"""The exact class-token tail: behind the last attention, only tokens that the head reads are
computed.

Where a head reads the first tokens of the stream alone, no other token of the last attention layer
and of what follows it has an effect. Keys and values are still those of all tokens, but their
matrices move to the other side of the products: q (y W_kᵀ)ᵀ = (q W_k) yᵀ, unless there are rotary
embeddings or norms over queries and keys, and p (y W_vᵀ) = (p y) W_vᵀ for the weights p of a
softmax. The bias of the keys adds a constant per query, which the softmax ignores.

Legend: B batch, N tokens, R tokens that the head reads, D residual width, H heads, K query/key
dims, V value dims per head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.derived.adopt import put_ as put_module_
from secateur.models.derived.layout import attention_weights, our_attention
from secateur.models.derived.names import is_fused, optional
from secateur.models.derived.steps import Step, residuals_of, steps_of
from secateur.models.derived.tokens.merge import MergeBlock, Sizes, log_of
from secateur.models.modules import SlimAttention
from secateur.models.statement import AttentionLayer, Residual, Statement

Reads = Callable[[Any], int | None]
ALL = "its head reads every token of the stream"


class TailBlock(MergeBlock):
    """The block of the last attention layer, which leaves R tokens of the stream of N.

    It does so only while the model's own forward pass runs in evaluation mode, without a mask and
    without a hook inside the block: whoever trains the model, looks into the block or calls it for
    features of all tokens gets all of them. `reads(model)` says how many tokens the head reads at
    present. With the attribute `recomputes` of the model, blocks run again in the backward pass,
    when the forward pass is over.
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
        place: int = 0,
        sizes: Sizes | None = None,
    ) -> None:
        super().__init__(block, residuals, kept, place=place, sizes=sizes)
        self.rows: Final = rows
        self.reads, self.recomputes = reads, recomputes
        self.narrow = False

    def begin(self, model: nn.Module, _images: object) -> None:
        """Before the forward pass of the whole model."""
        again = torch.is_grad_enabled() and getattr(model, self.recomputes or "", False) is True
        alone = torch.compiler.is_compiling() or not any(map(_is_watched, self.modules()))
        wanted = (self.reads(model) or self.rows + 1) <= self.rows
        self.narrow = wanted and alone and not again and not self.training

    def end(self, *_passed: object) -> None:
        """After it, also where it failed."""
        self.narrow = False

    def forward(self, *args: Any, **given: Any) -> Tensor:
        """All N tokens, or the first R in a forward pass of the whole model."""
        x_BND, bound = self.bound(args, given)
        masks = [residual.layers[0].call.mask for residual in self.steps]
        masked = any(bound.get(mask) is not None for mask in masks if mask)
        if not self.narrow or masked or bound.get("is_causal"):
            return super().forward(*args, **given)
        return self.first(x_BND, bound)

    def first(self, x_BND: Tensor, given: Mapping[str, Any]) -> Tensor:
        """The first R tokens (B, R, D) behind the block."""
        if self.sizes is not None and (sizes_BN1 := self.sizes.at(self.place)) is not None:
            given = {**given, "log_sizes": log_of(sizes_BN1)}
        if not any(self.attends(residual) for residual in self.steps):
            x_BND = x_BND[:, : self.rows]
        for residual in self.steps:
            update_BRD = self._update(residual, x_BND, given)
            if self.attends(residual):
                x_BND = x_BND[:, : self.rows]
            x_BND = x_BND + update_BRD
        return x_BND

    def _layer(
        self, residual: Residual, read: Tensor, given: Mapping[str, Any], passed: dict[str, Any]
    ) -> Any:
        attn = self.get_submodule(residual.path)
        if self.narrow and isinstance(attn, SlimAttention):
            return attend_first(attn, read, self.rows, given)
        return super()._layer(residual, read, given, passed)


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
    bq, bk, bv = _biases(attn.qkv.bias, parts)
    wk_HKD, wv_HVD = wk.unflatten(0, (heads, qk)), wv.unflatten(0, (heads, vo))

    def by_head(t_BNC: Tensor) -> Tensor:
        parted_BNHC: Tensor = t_BNC.unflatten(-1, (heads, qk))
        return parted_BNHC.transpose(1, 2)

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
    if (log_sizes := given.get("log_sizes")) is not None:
        logits_BRN = logits_BRN + log_sizes.squeeze(1)
    mean_BHRD = (logits_BRN.softmax(dim=-1) @ x_BND).unflatten(1, (heads, rows))
    out_BHRV = mean_BHRD @ wv_HVD.transpose(1, 2)
    if bv is not None:
        out_BHRV = out_BHRV + bv.unflatten(0, (heads, 1, vo))
    out_BRD = attn.proj(out_BHRV.transpose(1, 2).flatten(2))
    return (out_BRD, None) if attn.call.pair else out_BRD


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def watch_(model: nn.Module, tail: TailBlock) -> None:
    """Let the forward passes of `model` narrow the stream at this tail, and at no other."""
    forget_(model)
    model.register_forward_pre_hook(tail.begin)
    model.register_forward_hook(tail.end, always_call=True)


def forget_(model: nn.Module) -> None:
    """Take the hooks of a tail from a model."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for number, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), TailBlock):
                del hooks[number]
                model._forward_hooks_always_called.pop(number, None)


def _biases(bias: Tensor | None, parts: list[int]) -> tuple[Tensor | None, ...]:
    """Biases of queries, keys and values; keys may be without."""
    if bias is None:
        return None, None, None
    return tuple(bias.split(parts)) if bias.numel() == sum(parts) else _keyless(bias, parts)


def _keyless(bias: Tensor, parts: list[int]) -> tuple[Tensor | None, ...]:
    query, value = bias.split([parts[0], parts[2]])
    return query, None, value


def tail_of(model: nn.Module) -> TailBlock | None:
    """The tail of a model; None where it has none."""
    return next((module for module in model.modules() if isinstance(module, TailBlock)), None)


def why_no_tail(stated: Statement, model: nn.Module, steps: Sequence[Step]) -> str | None:
    """Why the last layers cannot be computed for some tokens alone; None if they can."""
    if not stated.tail.reads(model):
        return ALL
    if not steps or stated.grids or stated.transition is not None:
        return "no layer is left in it" if not steps else "it holds its stream as a grid"
    start = _start(steps)
    for step in steps[start:]:
        if step.kind == "fixed":
            return f"{step.path} mixes tokens behind the last attention layer"
    layer, attn = steps[start].layer, steps[start].module
    if isinstance(layer, AttentionLayer):
        for fact in (layer.gate, layer.context_norm):
            if optional(attn, fact) is not None:
                return f"the output of its last attention layer passes {fact}"
        if layer.position_bias is not None:
            return "its last attention layer has biases by position"
    return None


def narrowed(stated: Statement, model: nn.Module, steps: list[Step], *, asked: bool) -> list[Step]:
    """The steps, those of the tail with the tokens that they compute where it is or will be."""
    rows = stated.tail.reads(model)
    if not (asked or tail_of(model)) or why_no_tail(stated, model, steps):
        return steps
    start = _start(steps)
    return [*steps[:start], *(replace(step, rows=rows) for step in steps[start:])]


def put_(stated: Statement, model: nn.Module) -> None:
    """Let `model` compute the tail for the tokens alone that its head reads."""
    forget_(model)
    steps = steps_of(stated, model)
    if why_no_tail(stated, model, steps):
        return
    first = steps[_start(steps)]
    own_attention_(stated, model, first)
    block = TailBlock(
        first.owner,
        residuals_of(stated, first.block, first.owner),
        tuple(step.residual.path for step in steps if step.block == first.block),
        rows=stated.tail.reads(model) or 0,
        reads=stated.tail.reads,
        recomputes=stated.recomputes,
        place=getattr(first.owner, "place", 0),
        sizes=getattr(first.owner, "sizes", None),
    )
    model.set_submodule(first.block, block)
    watch_(model, block)


def own_attention_(stated: Statement, model: nn.Module, step: Step) -> None:
    """Put our attention with the same weights in the place of a host's, if it is not there."""
    if isinstance(step.layer, AttentionLayer) and not isinstance(step.module, SlimAttention):
        fused = is_fused(step.module, stated.fused)
        weights = attention_weights(step.module, step.layer)
        put_module_(
            stated, model, step.path, our_attention(step.module, step.layer, weights, fused=fused)
        )


def _start(steps: Sequence[Step]) -> int:
    """The place of the last attention layer, or of the first step where there is none."""
    return max((i for i, step in enumerate(steps) if step.kind == "attention"), default=0)
