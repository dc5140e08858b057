"""The anatomy of a model from its statement, and what of it cannot be had.

Legend: D residual width.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import nn

from secateur.errors import UserError
from secateur.models.derived.costs import ends_of, joints_of, prices_of, stand_in, streams_of
from secateur.models.derived.layout import shape_of
from secateur.models.derived.members import heads_of, start_of
from secateur.models.derived.names import (
    linear,
    member,
    names_in,
    optional,
    parameter,
    present,
)
from secateur.models.derived.steps import Step, blocks_of, steps_of
from secateur.models.derived.tokens.merge import merges_of
from secateur.models.derived.tokens.put import merged_steps, why_no_merging
from secateur.models.derived.tokens.tail import narrowed, why_no_tail
from secateur.models.modules import SlimAttention
from secateur.models.outputs import features_in
from secateur.models.statement import AttentionLayer, Layer, MlpLayer, Names, Separate, Statement
from secateur.models.types import Anatomy, Block, Branch, GroupName, Rate


def read(
    stated: Statement,
    model: nn.Module,
    *,
    exact_tail: bool = False,
    merges: Mapping[str, int] | None = None,
) -> Anatomy:
    """Describe `model`; UserError for members that cannot be supported or are not there.

    With `exact_tail` and `merges` layers are priced as if these were put there, see
    `secateur.models.derived.tokens.tail` and `secateur.models.derived.tokens.merge`.
    """
    if exact_tail or merges:
        plain, changed = read(stated, model), _read(stated, model, exact_tail, merges)
        return replace(changed, as_written=plain.reference)
    return _read(stated, model, tail=False, merges=None)


def _read(
    stated: Statement, model: nn.Module, tail: bool, merges: Mapping[str, int] | None
) -> Anatomy:
    try:
        steps = check(stated, model)
    except UserError as error:
        if "is stated, but" not in str(error):
            raise
        raise UserError(f"{error}; correct the statement of family '{stated.name}'.") from None
    tokens = steps[-1].tokens if steps else stated.prefix(model) + prod(stated.grid(model))
    no_tail, no_merging = why_no_tail(stated, model, steps), why_no_merging(stated, model, steps)
    steps = merged_steps(stated, model, narrowed(stated, model, steps, asked=tail), merges)
    found = [(path, type(block).__name__) for _, path, block in blocks_of(stated, model)]
    paths = [path for path, name in found if name != stated.flatten]
    branches = tuple(_branch(stated, model, step) for step in steps if step.is_branch)
    why = why_not_narrow(stated, model, steps)
    streams = () if why else streams_of(stated, model, steps)
    prefix = stated.prefix(model)
    return Anatomy(
        family=stated.name,
        width=start_of(stated, model, max((step.stage for step in steps), default=0)).width,
        tokens=tokens,
        prefix_tokens=prefix,
        input_size=stated.image(model),
        num_classes=_classes_of(stated, model),
        blocks=tuple(
            Block(id=path, index=i, branches=tuple(b.id for b in branches if b.block == i))
            for i, path in enumerate(paths)
        ),
        branches=branches,
        ends=Rate(base=ends_of(stated, model, steps)),
        refusals=_reasons(width=why, tokens=no_merging),
        streams=streams,
        transitions=() if why else joints_of(stated, model, steps, streams),
        stand_ins=tuple(stand_in(step) for step in steps if step.kind == "linear"),
        tail=None if no_tail else stated.tail.reads(model),
        no_tail=no_tail or "",
        merges=merges_of(model) if merges is None else merges,
    )


def _reasons(*, width: str | None, tokens: str | None) -> dict[GroupName, str]:
    """The groups of the whole model that it refuses."""
    found: dict[GroupName, str | None] = {"width": width, "tokens": tokens}
    return {group: why for group, why in found.items() if why is not None}


def _classes_of(stated: Statement, model: nn.Module) -> int:
    """Outputs of the classifier, which may be another than the host was built with."""
    if stated.classes is None:
        return 0
    for head in heads_of(stated, model).values():
        return head.out_features
    named = member(model, stated.classes)
    return int(named) if isinstance(named, int) else 0


def why_not_narrow(stated: Statement, model: nn.Module, steps: list[Step]) -> str | None:
    """Why the streams of this model cannot be made narrower; None if they can."""
    tail = stated.tail
    if stated.classes is None and _shows_its_stream(stated, model):
        return "it has no classifier, and its outputs have the channels of its stream"
    if (pool := optional(model, tail.pool)) is not None:
        return (
            f"its pooling head ({type(pool).__name__}) splits the channels of the stream into "
            "heads of fixed size"
        )
    owned = [path.removesuffix("?") for path in (*names_in(stated.stem), *names_in(tail))]
    inside = tuple(f"{path}." for path in [*owned, stated.blocks.partition(".*")[0]])
    names = [name for name, _ in model.named_parameters()]
    strange = [n for n in names if n not in owned and not n.startswith(inside)]
    if strange:
        return f"how its '{min(strange).partition('.')[0]}' uses the stream is not known"
    for path in tail.classifiers:
        if not isinstance(head := member(model, path), nn.Linear | nn.Identity | None):
            return f"its {path.removesuffix('?')} is a {type(head).__name__}, not a Linear"
    for step in steps:
        gate = step.layer.gate if isinstance(step.layer, AttentionLayer) else None
        if step.held_whole and optional(step.module, gate) is not None:
            return f"{step.path} computes at its present width only, and ours cannot take its place"
    if stated.transition is not None and stated.transition.norm_before is not None:
        return "the norms between its stages go over the channels of several tokens at once"
    starts = [step.stage for step in steps if step.kind == "transition"]
    if starts != list(range(1, max((step.stage for step in steps), default=0) + 1)):
        return (
            "not every stage but the first begins with a strided convolution, so some share a "
            "stream"
        )
    return None


@torch.no_grad()
def _shows_its_stream(stated: Statement, model: nn.Module) -> bool:
    """Whether some features of a model without classes come out past its linear heads."""
    heads = list(heads_of(stated, model).values())
    if not heads:
        return True
    tokens = stated.prefix(model) + prod(stated.grid(model))
    stream_BND = heads[0].weight.new_zeros(1, tokens, start_of(stated, model, 0).width)
    return len(list(features_in(stated.head(model, stream_BND)))) > len(heads)


def check(stated: Statement, model: nn.Module) -> list[Step]:
    """The steps; UserError for names that the model lacks, and classes that facts do not fit."""
    for path, classes in stated.stem.classes.items():
        found = member(model, path)
        if not {cls.__name__ for cls in type(found).__mro__} & set(classes):
            raise UserError(
                f"{path} is a {type(found).__name__}, where secateur knows only "
                f"{' or '.join(classes)}, so it cannot tell which layer writes the stream."
            )
    named = stated.classes is None or heads_of(stated, model)
    classes = () if named else (str(stated.classes),)
    for path in (*names_in(stated.stem), *names_in(stated.tail), *stated.sizes, *classes):
        member(model, path)
    steps = steps_of(stated, model)
    stated_by: dict[int, Names] = {}
    for step in steps:
        if step.layer is None:
            continue
        for fact, owner in ((step.residual, step.owner), (step.layer, step.module)):
            if isinstance(owner, SlimAttention):
                continue
            if id(fact) not in stated_by:
                stated_by[id(fact)] = tuple(names_in(fact))
            for path in stated_by[id(fact)]:
                member(owner, path)
        if isinstance(step.layer, MlpLayer):
            _check_mlp(step, step.layer)
        if isinstance(step.layer, AttentionLayer):
            _check_attention(step, step.layer)
    return steps


def _check_attention(step: Step, layer: AttentionLayer) -> None:
    if not isinstance(layer.qkv, Separate):
        return
    query, key = (linear(step.module, name).weight.shape[0] for name in (layer.qkv.q, layer.qkv.k))
    if query != key:
        raise UserError(
            f"{step.path} has {query} rows for queries and {key} for keys: heads that share keys "
            "and values (grouped-query attention) cannot be read."
        )


def _check_mlp(step: Step, layer: MlpLayer) -> None:
    for name in (*layer.readers, layer.writer):
        linear(step.module, name)
    for name in filter(None, (layer.unit_norm, layer.norm_behind)):
        found = optional(step.module, name)
        if found is None or (isinstance(found, nn.BatchNorm2d) and found.track_running_stats):
            continue
        raise UserError(
            f"{step.path}.{name} is a {type(found).__name__}; of the MLPs on grids only those with "
            "batch norm that keeps running statistics, or with none, can be read."
        )


def _carries(stated: Statement, model: nn.Module, stage: int) -> bool:
    """Whether a constant before the first branch of a stage has a bias to go to."""
    if not stage:
        return stated.stem.activation is None
    start = start_of(stated, model, stage)
    return bool(start.vectors) or start.writer.bias is not None


def _branch(stated: Statement, model: nn.Module, step: Step) -> Branch:
    layer = step.layer
    assert isinstance(layer, AttentionLayer | MlpLayer)
    attends, shape = isinstance(layer, AttentionLayer), shape_of(step.module, layer)
    return Branch(
        id=step.path,
        kind="attention" if attends else "mlp",
        block=step.place[0],
        stage=step.stage,
        width=step.writer.weight.shape[0],
        tokens=step.tokens,
        shape=shape,
        writer_bias=step.writer.bias is not None,
        rows=step.rows,
        carrier=_carries(stated, model, step.stage),
        refusals=_refusals(step.module, layer),
        windows=step.windows,
        **prices_of(step),
    )


def _refusals(module: nn.Module, layer: Layer | None) -> dict[GroupName, str]:
    """The groups that the facts of a layer refuse, with the reason."""
    if isinstance(layer, MlpLayer):
        if optional(module, layer.norm) is None:
            return {}
        return {"hidden": "a norm over the hidden neurons depends on every one of them"}
    refusals: dict[GroupName, str] = {}
    if not isinstance(layer, AttentionLayer):
        return refusals
    every: tuple[GroupName, ...] = ("qk", "vo", "heads")
    if present(module, *(layer.qk_norm or ())):
        refusals["qk"] = (
            "QK-norm normalises over the dims of a head, so removing some changes the others"
        )
    if layer.rotary is not None:
        refusals["qk"] = "rotary position embeddings turn pairs of dims, each at its own frequency"
        if layer.rotary.per_head:
            refusals["heads"] = "each head has rotary position embeddings of its own"
    if any(parameter(module, path) is not None for path in names_in(layer.relative)):
        refusals["qk"] = (
            "position biases are products of the queries with vectors that all heads share"
        )
    if optional(module, layer.gate) is not None:
        refusals |= dict.fromkeys(every, "the attention output is gated")
    if optional(module, layer.context_norm) is not None:
        why = "a norm over the attention output depends on every dim"
        refusals |= dict.fromkeys(("vo", "heads"), why)
    return refusals
