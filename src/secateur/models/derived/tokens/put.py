"""Where tokens can merge, what layers cost behind that, and how merging is put into a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from secateur.errors import UserError, short
from secateur.models.derived.names import optional
from secateur.models.derived.steps import Step, residuals_of, steps_of
from secateur.models.derived.tokens.merge import MergeBlock, Sizes, merges_of, pairs_of
from secateur.models.derived.tokens.tail import own_attention_, why_no_tail
from secateur.models.statement import AttentionLayer, Statement


def why_no_merging(stated: Statement, model: nn.Module, steps: Sequence[Step]) -> str | None:
    """Why tokens of this model cannot merge; None if they can."""
    if why := why_no_tail(stated, model, steps):
        return why
    if (stated.tail.reads(model) or 0) > stated.prefix(model):
        return "its head reads a patch"
    for step in steps:
        if not isinstance(layer := step.layer, AttentionLayer):
            continue
        if layer.rotary is not None:
            return "rotary position embeddings belong to single patches"
        if layer.position_bias is not None:
            return f"{step.path} has biases by position"
        if any(
            optional(step.module, fact) is not None for fact in (layer.gate, layer.context_norm)
        ):
            return f"secateur's own attention cannot take the place of {step.path}"
    return None


def merged_steps(
    stated: Statement, model: nn.Module, steps: list[Step], asked: Mapping[str, int] | None
) -> list[Step]:
    """The steps with the tokens that arrive where blocks merge, or will merge as `asked`."""
    counts = merges_of(model) if asked is None else asked
    found = list[Step]()
    if not counts or not steps:
        return steps
    tokens = steps[0].tokens
    for step in steps:
        merge = counts.get(step.block, 0) if step.kind == "attention" else 0
        patches = tokens - stated.prefix(model)
        matches = (patches + 1) // 2 * (patches // 2) if merge else 0
        found.append(replace(step, tokens=tokens, matches=matches))
        tokens -= merge
    return found


def put_(stated: Statement, model: nn.Module, merges: Mapping[str, int]) -> None:
    """Let the blocks at these paths merge so many tokens; also works on the meta device.

    UserError for blocks without attention, for the block of the last attention, and for more than
    half of the patches that arrive.
    """
    steps = steps_of(stated, model)
    if why := why_no_merging(stated, model, steps):
        raise UserError(f"tokens of this model cannot merge: {why}.")
    _check(stated, model, steps, merges)
    first = min((i for i, step in enumerate(steps) if merges.get(step.block)), default=len(steps))
    sizes, done = Sizes(), list[str]()
    for step in steps[first:]:
        own_attention_(stated, model, step)
        if step.block in done:
            continue
        block = MergeBlock(
            step.owner,
            residuals_of(stated, step.block, step.owner),
            tuple(other.residual.path for other in steps if other.block == step.block),
            merge=merges.get(step.block, 0),
            prefix=stated.prefix(model),
            place=len(done),
            sizes=sizes,
        )
        model.set_submodule(step.block, block)
        done.append(step.block)


def _check(
    stated: Statement, model: nn.Module, steps: Sequence[Step], merges: Mapping[str, int]
) -> None:
    attending = [step for step in steps if step.kind == "attention"]
    places = [step.block for step in attending[:-1]]
    for block, count in merges.items():
        if count and block not in places:
            raise UserError(
                f"no token can merge in {short(block)}, which has no attention or the last one; "
                f"blocks that can merge: {', '.join(places)}."
            )
    for step in merged_steps(stated, model, list(steps), merges):
        patches, count = step.tokens - stated.prefix(model), merges.get(step.block, 0)
        if step.kind == "attention" and not 0 <= count <= pairs_of(patches):
            raise UserError(
                f"{count} tokens cannot merge in {step.block}, where {patches} patches arrive, "
                f"at most {pairs_of(patches)} in pairs; merge fewer."
            )
