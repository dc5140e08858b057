"""What the parts of a model cost: parameters and multiply-accumulates for one image.

MACs count matrix products and convolutions only, with the two attention products QK^T and AV;
norms, activations, biases and softmax are left out, as is the convention.
Legend: D residual width, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from collections import Counter
from math import prod
from typing import TypedDict

from torch import nn

from secateur.models.derived.layout import attention_weights, mlp_shape, norms_of_qk
from secateur.models.derived.names import classifiers, optional, parameter
from secateur.models.derived.steps import Step, start_of
from secateur.models.modules import ShiftedReLU
from secateur.models.statement import AttentionLayer, MlpLayer, Statement
from secateur.models.types import Cost, Rate, StandInLayer, Stream, StreamTransition


class Prices(TypedDict, total=False):
    """The rates of a `Branch`."""

    fixed: Rate
    per_head: Rate
    per_qk: Rate
    per_qk_layer: Rate
    per_vo: Rate
    per_hidden: Rate


def parameters(*modules: nn.Module | None) -> int:
    """Number of parameters, each counted once."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def step_parameters(step: Step) -> int:
    """Parameters of a step: layer, norm and LayerScale."""
    scale = 0 if step.scale is None else step.scale.numel()
    return parameters(step.module, step.norm) + scale


def prices_of(step: Step) -> Prices:
    """The `Branch` prices of an attention layer or MLP with its norm and LayerScale."""
    scale = 0 if step.scale is None else step.scale.numel()
    vectors = parameters(step.norm, step.batch_norm) + scale
    bias = int(step.writer.bias is not None)
    per_width = vectors // step.writer.weight.shape[0] + bias
    if isinstance(step.layer, MlpLayer):
        return _mlp_prices(step, step.layer, per_width)
    assert isinstance(step.layer, AttentionLayer)
    return _attention_prices(step, step.layer, per_width)


def _attention_prices(step: Step, layer: AttentionLayer, per_width: int) -> Prices:
    n, attn, weights = step.tokens, step.module, attention_weights(step.module, layer)
    gate, norm = optional(attn, layer.gate), optional(attn, layer.context_norm)
    gates = gate.get_parameter("weight").shape[0] if gate is not None else 0
    inner = parameters(gate, norm) - gates * weights.o_DHV.shape[0]
    norms = parameters(*(optional(attn, name) for name in norms_of_qk(attn, layer)))
    in_qk = sum(bias is not None for bias in (weights.qb_HK, weights.kb_HK))
    in_vo = int(weights.vb_HV is not None)
    table = 0 if weights.table_HT is None else weights.table_HT.shape[1]
    per_dim = Cost(params=2, macs=2 * n)
    return {
        "fixed": Rate(
            base=Cost(params=inner), per_width=Cost(params=per_width + gates, macs=n * gates)
        ),
        "per_head": Rate(base=Cost(params=table)),
        "per_qk": Rate(base=Cost(params=in_qk, macs=n * n), per_width=per_dim),
        "per_qk_layer": Rate(base=Cost(params=norms // weights.shape.qk)),
        "per_vo": Rate(base=Cost(params=in_vo, macs=n * n), per_width=per_dim),
    }


def _mlp_prices(step: Step, layer: MlpLayer, per_width: int) -> Prices:
    hidden, readers = mlp_shape(step.module, layer).hidden, step.readers
    rows = sum(reader.weight.shape[0] for reader in readers) // hidden
    biases = sum(reader.bias.numel() for reader in readers if reader.bias is not None)
    inner = parameters(optional(step.module, layer.norm), optional(step.module, layer.unit_norm))
    return {
        "fixed": Rate(per_width=Cost(params=per_width)),
        "per_hidden": Rate(
            base=Cost(params=(biases + inner) // hidden),
            per_width=Cost(params=rows + 1, macs=step.tokens * (rows + 1)),
        ),
    }


def stand_in(step: Step) -> StandInLayer:
    """A linear layer in place of a branch, with its cost."""
    macs = step.tokens * step.writer.weight.numel()
    cost = Cost(params=step_parameters(step), macs=macs)
    return StandInLayer(id=step.path, block=step.place[0], cost=cost)


def ends_of(stated: Statement, model: nn.Module, steps: list[Step]) -> Cost:
    """All that is not a branch: stem, transitions, fixed and linear steps, tail."""
    params = parameters(model) - sum(step_parameters(step) for step in steps if step.is_branch)
    patches = prod(stated.grid(model))
    macs = 0
    for path, times in {stated.stem.writer: 1, **stated.stem.earlier}.items():
        if times:
            macs += patches * times * model.get_parameter(f"{path}.weight").numel()
    for step in steps:
        if step.kind == "transition":
            macs += step.tokens * start_of(stated, model, step.stage).writer.weight.numel()
        if step.kind == "linear":
            macs += stand_in(step).cost.macs
    macs += sum(head.weight.numel() for head in classifiers(stated, model).values())
    if optional(model, stated.tail.pool) is not None and stated.tail.pool_macs is not None:
        macs += stated.tail.pool_macs(model)
    return Cost(params=params, macs=macs)


def streams_of(stated: Statement, model: nn.Module, steps: list[Step]) -> tuple[Stream, ...]:
    """One stream per stage, priced but for what costs by the channels of two."""
    last = max((step.stage for step in steps), default=0)
    streams = []
    for stage in range(last + 1):
        start = start_of(stated, model, stage)
        width, vectors = start.width, list(start.norms.values())
        params, macs = int(start.writer.bias is not None), 0
        if stage == 0:
            inputs, stem = start.writer.weight[0].numel(), stated.stem
            tables = [parameter(model, path) for path in (stem.positions, *stem.tokens)]
            params += inputs + sum(t.numel() for t in tables if t is not None) // width
            macs += prod(stated.grid(model)) * inputs
            if isinstance(act := optional(model, stem.activation), ShiftedReLU):
                vectors.append(act)
        if stage == last:
            rows = sum(head.out_features for head in classifiers(stated, model).values())
            params, macs = params + rows, macs + rows
            vectors += [norm for path in stated.tail.norms if (norm := optional(model, path))]
        params += parameters(*vectors) // width
        for step in steps:
            if step.stage == stage and step.kind in ("fixed", "linear"):
                square = width if step.kind == "linear" else 0
                params += step_parameters(step) // width - square
        streams.append(
            Stream(
                id=f"{stated.blocks.partition('.')[0]}.{stage}" if last else "stream",
                width=width,
                stage=stage,
                ends=Rate(per_width=Cost(params=params, macs=macs)),
            )
        )
    return tuple(streams)


def joints_of(
    stated: Statement, model: nn.Module, steps: list[Step], streams: tuple[Stream, ...]
) -> tuple[StreamTransition, ...]:
    """Transitions and linear steps, which cost by the channels of two streams."""
    params, macs = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for step in steps:
        hook_points, pair = 1, (step.stage, step.stage)
        if step.kind == "transition":
            hook_points = start_of(stated, model, step.stage).writer.weight[0, 0].numel()
            pair = (step.stage - 1, step.stage)
        if step.kind in ("transition", "linear"):
            params[pair] += hook_points
            macs[pair] += step.tokens * hook_points
    return tuple(
        StreamTransition(
            first=streams[i].id, second=streams[j].id, per_pair=Cost(params=n, macs=macs[i, j])
        )
        for (i, j), n in params.items()
    )
