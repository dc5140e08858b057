"""Where the exact class-token tail begins, why a model has none, and how it is put there."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from secateur.models.derived.layout import attention_weights, our_attention
from secateur.models.derived.names import optional
from secateur.models.derived.steps import Step, residuals_of, steps_of
from secateur.models.modules import SlimAttention
from secateur.models.statement import AttentionLayer, Statement
from secateur.models.tail import TailBlock, forget_, tail_of, watch_

ALL = "its head reads every token of the stream"


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
    if isinstance(first.layer, AttentionLayer) and not isinstance(first.module, SlimAttention):
        fused = bool(getattr(first.module, stated.fused or "", True))
        weights = attention_weights(first.module, first.layer)
        ours = our_attention(first.module, first.layer, weights, fused=fused)
        model.set_submodule(first.path, ours)
    block = TailBlock(
        first.owner,
        residuals_of(stated, first.block, first.owner),
        tuple(step.residual.path for step in steps if step.block == first.block),
        rows=stated.tail.reads(model) or 0,
        reads=stated.tail.reads,
        recomputes=stated.recomputes,
    )
    model.set_submodule(first.block, block)
    watch_(model, block)


def _start(steps: Sequence[Step]) -> int:
    """The place of the last attention layer, or of the first step where there is none."""
    return max((i for i, step in enumerate(steps) if step.kind == "attention"), default=0)
