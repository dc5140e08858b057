"""What the parts of a model cost: parameters and multiply-accumulates for one image.

MACs count matrix products and convolutions only, with the two attention products QK^T and AV;
norms, activations, biases and softmax are left out, as is the convention.
Legend: D residual width, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from collections import Counter
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.models.derived.members import heads_of, members_of, start_of
from secateur.models.derived.names import names_in, optional, parameter, present
from secateur.models.derived.steps import Step
from secateur.models.statement import AttentionLayer, MlpLayer, Statement
from secateur.models.types import Cost, Rate, StandInLayer, Stream, StreamTransition


def parameters(*modules: nn.Module | None) -> int:
    """Number of parameters, each counted once."""
    return sum(sum(_sizes(module).values()) for module in modules if module is not None)


def _sizes(module: nn.Module) -> dict[int, int]:
    """The elements of every parameter; torch's own walk also makes names, which takes longer."""
    found = {id(p): p.numel() for p in module._parameters.values() if p is not None}
    for child in module._modules.values():
        if child is not None:
            found |= _sizes(child)
    return found


def step_parameters(step: Step) -> int:
    """Parameters of a step: layer, norm and LayerScale."""
    scale = 0 if step.scale is None else step.scale.numel()
    return parameters(step.module, step.norm, step.biases) + scale


def prices_of(step: Step) -> dict[str, Rate]:
    """The rates of a `Branch` for an attention layer or MLP with its norm and LayerScale."""
    scale = 0 if step.scale is None else step.scale.numel()
    vectors = parameters(step.norm, step.batch_norm) + scale
    per_width = vectors // step.writer.weight.shape[0] + int(step.writer.bias is not None)
    if isinstance(step.layer, MlpLayer):
        return _mlp_prices(step, step.layer, per_width)
    assert isinstance(step.layer, AttentionLayer)
    return _attention_prices(step, step.layer, per_width)


def _attention_prices(step: Step, layer: AttentionLayer, per_width: int) -> dict[str, Rate]:
    n, pairs, attn = step.tokens, step.tokens**2, step.module
    sides = step.grid or (0, 0)
    if (windows := step.windows) is not None:
        n, sides = windows.count * windows.tokens, windows.size
        pairs = n * windows.tokens
    relative = [parameter(attn, path) for path in names_in(layer.relative)]
    more = n * sum(sides) if any(table is not None for table in relative) else 0
    weights = step.attention
    gate = optional(attn, layer.gate)
    gates = gate.get_parameter("weight").shape[0] if gate is not None else 0
    norms = parameters(*present(attn, *(layer.qk_norm or ())).values())
    in_qk = sum(bias is not None for bias in (weights.qb_HK, weights.kb_HK))
    in_vo = int(weights.vb_HV is not None)
    table = 0 if weights.table_HT is None else weights.table_HT.shape[1]
    inner = parameters(attn, step.biases) - weights.numel - norms - gates * weights.o_DHV.shape[0]
    head, qk, qk_dim, vo, vo_dim = _attention_macs(n, pairs, step.rows, moved=moves_keys(step))
    return {
        "fixed": Rate(
            base=Cost(params=inner), per_width=Cost(params=per_width + gates, macs=n * gates)
        ),
        "per_head": Rate(base=Cost(params=table), per_width=Cost(macs=head)),
        "per_qk": Rate(
            base=Cost(params=in_qk, macs=qk + more), per_width=Cost(params=2, macs=qk_dim)
        ),
        "per_qk_layer": Rate(base=Cost(params=norms // weights.shape.qk, macs=step.matches)),
        "per_vo": Rate(base=Cost(params=in_vo, macs=vo), per_width=Cost(params=2, macs=vo_dim)),
    }


def moves_keys(step: Step) -> bool:
    """Whether the matrix of the keys can meet the queries instead of all tokens."""
    layer = step.layer
    norms = isinstance(layer, AttentionLayer) and present(step.module, *(layer.qk_norm or ()))
    return isinstance(layer, AttentionLayer) and layer.rotary is None and not norms


def _attention_macs(
    n: int, pairs: int, rows: int | None, *, moved: bool
) -> tuple[int, int, int, int, int]:
    """Products of a head per channel, of a query/key dim and per channel, of a value dim likewise.

    For n tokens in so many `pairs`, or of the first `rows` alone as in `derived.tokens.tail`.
    """
    if rows is None:
        return 0, pairs, 2 * n, pairs, 2 * n
    if moved:
        return 2 * rows * n, 0, 2 * rows, 0, 2 * rows
    return rows * n, rows * n, 2 * n, 0, 2 * rows


def _mlp_prices(step: Step, layer: MlpLayer, per_width: int) -> dict[str, Rate]:
    hidden, readers = step.writer.weight.shape[1], step.readers
    rows = sum(reader.weight.shape[0] for reader in readers) // hidden
    biases = sum(reader.bias.numel() for reader in readers if reader.bias is not None)
    inner = parameters(optional(step.module, layer.norm), optional(step.module, layer.unit_norm))
    return {
        "fixed": Rate(per_width=Cost(params=per_width)),
        "per_hidden": Rate(
            base=Cost(params=(biases + inner) // hidden),
            per_width=Cost(params=rows + 1, macs=step.computed * (rows + 1)),
        ),
    }


def stand_in(step: Step) -> StandInLayer:
    """A linear layer in place of a branch, with its cost."""
    macs = step.computed * step.writer.weight.numel()
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
    if (before := optional(model, stated.stem.before)) is not None:
        macs += _macs_by_shapes(before, stated.image(model))
    for step in steps:
        if step.kind == "transition":
            macs += step.tokens * start_of(stated, model, step.stage).writer.weight.numel()
        if step.kind == "linear":
            macs += stand_in(step).cost.macs
    macs += sum(head.weight.numel() for head in heads_of(stated, model).values())
    pool, pool_macs = stated.tail.pool, stated.tail.pool_macs
    if pool_macs is not None and (pool is None or optional(model, pool) is not None):
        macs += pool_macs(model)
    return Cost(params=params, macs=macs)


@torch.no_grad()
def _macs_by_shapes(module: nn.Module, image: tuple[int, int, int]) -> int:
    """Products of the convolutions and linear layers of a network that takes one image."""
    counts: list[int] = []

    def count(layer: nn.Conv2d | nn.Linear, _args: object, output: Tensor) -> None:
        counts.append(layer.weight.numel() * output.numel() // layer.weight.shape[0])

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        held = chain(module.named_parameters(), module.named_buffers())
        tensors = {name: tensor.detach().to("meta") for name, tensor in held}
        like = next(t for t in tensors.values() if t.is_floating_point())
        functional_call(module, tensors, (like.new_zeros(1, *image),))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def streams_of(stated: Statement, model: nn.Module, steps: list[Step]) -> tuple[Stream, ...]:
    """One stream per stage, priced but for what costs by the channels of two."""
    last = max((step.stage for step in steps), default=0)
    streams = []
    for stage in range(last + 1):
        members = members_of(stated, model, stage, steps)
        width, writer = members.width, members.writer
        rows = sum(head.weight.numel() // width for head in members.heads.values())
        inputs = 0 if stage else writer.weight[0].numel()
        norms = (*members.tail.values(), *members.unread.values())
        vectors = parameters(*members.vectors.values(), *norms)
        vectors += sum(table.numel() for table in members.tables.values())
        for step in members.steps:
            if not step.is_branch:
                square = width**2 if step.kind == "linear" else 0
                vectors += step_parameters(step) - square
        params = inputs + rows + vectors // width + int(writer.bias is not None)
        per_width = Cost(params=params, macs=inputs * prod(stated.grid(model)) + rows)
        name = f"{stated.blocks.partition('.')[0]}.{stage}" if last else "stream"
        streams.append(Stream(id=name, width=width, stage=stage, ends=Rate(per_width=per_width)))
    return tuple(streams)


def joints_of(
    stated: Statement, model: nn.Module, steps: list[Step], streams: tuple[Stream, ...]
) -> tuple[StreamTransition, ...]:
    """Transitions and linear steps, which cost by the channels of two streams."""
    params, macs = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for step in steps:
        taps, pair = 1, (step.stage, step.stage)
        if step.kind == "transition":
            taps = start_of(stated, model, step.stage).writer.weight[0, 0].numel()
            pair = (step.stage - 1, step.stage)
        if step.kind in ("transition", "linear"):
            params[pair] += taps
            macs[pair] += step.computed * taps
    return tuple(
        StreamTransition(
            first=streams[i].id, second=streams[j].id, per_pair=Cost(params=n, macs=macs[i, j])
        )
        for (i, j), n in params.items()
    )
