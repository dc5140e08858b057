"""Make the residual stream of a stage narrower: the same channels in every member.

Legend: D residual width.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.derived.adopt import replace_attention_
from secateur.models.derived.fold import writer_scale
from secateur.models.derived.layout import (
    held_in,
    mlp_weights,
    our_attention,
)
from secateur.models.derived.members import Members, Projection, members_of, reading_once, start_of
from secateur.models.derived.names import is_fused
from secateur.models.derived.steps import Step, steps_of
from secateur.models.norms import can_hold, held_norm, is_norm, removed
from secateur.models.statement import AttentionLayer, MlpLayer, Statement
from secateur.models.stream import END, Held, StreamReaders, StreamWeights


@torch.no_grad()
def narrow_(
    stated: Statement, model: nn.Module, stage: int, kept_D: Tensor, held: Mapping[str, Held]
) -> None:
    """Keep the channels `kept_D` of one stage in every member.

    Norms go over what is left; where `held` says what stood in the removed channels, by branch and
    `END`, readers count these as constants: exactly, but for the rim of the next grid, where a
    strided convolution sees zeros beyond the edge. Norms behind a branch or before the first one
    do not.
    """
    for step in steps_of(stated, model):
        if step.stage == stage and step.held_whole and isinstance(step.layer, AttentionLayer):
            weights = step.attention
            fused = is_fused(step.module, stated.fused)
            new = our_attention(step.module, step.layer, weights, fused=fused)
            replace_attention_(stated, model, step, new)
    members = members_of(stated, model, stage)
    if members.following is None:
        _narrow_tail_(model, members, kept_D, held.get(END))
    else:
        _narrow_inputs_(_strided(stated, model, members.following), kept_D, held.get(END))
    for step in members.steps:
        _narrow_step_(step, kept_D, held.get(step.path))
    keep_(members.writer, kept_D, 0)
    for vector in (*members.vectors.values(), *members.unread.values()):
        keep_vector_(vector, kept_D)
    for path, table in members.tables.items():
        _set_(model, path, _kept(table, kept_D, -1))
    if members.following is None:
        for name in stated.sizes:
            setattr(model, name, kept_D.numel())
    if stated.resized is not None:
        stated.resized(model, stage, kept_D.numel())


@torch.no_grad()
def stream_weights(stated: Statement, model: nn.Module, stage: int) -> StreamWeights:
    """All members of a stream as matrices; writers include the LayerScale behind them."""
    members = members_of(stated, model, stage)
    writers = {members.name: members.writer.weight.detach().flatten(1)}
    readers = {
        path: head.weight.detach().unflatten(1, (-1, members.width)).flatten(0, 1).T
        for path, head in members.heads.items()
    }
    if (step := members.following) is not None:
        weight = _strided(stated, model, step).weight.detach()
        readers[step.path] = weight.transpose(0, 1).flatten(1)
    for step in members.steps:
        if isinstance(step.layer, AttentionLayer):
            own = step.attention
            read = [part.flatten(0, 1) for part in (own.q_HKD, own.k_HKD, own.v_HVD)]
            writer_DF = own.o_DHV.flatten(1)
        elif isinstance(step.layer, MlpLayer):
            mlp = mlp_weights(step.module, step.layer)
            read, writer_DF = [*mlp.readers_FD], mlp.w2_DF
        else:
            continue
        scale_D = writer_scale(step)
        writers[step.path] = writer_DF if scale_D is None else scale_D[:, None] * writer_DF
        readers[step.path] = torch.cat(read).T
    return StreamWeights(writers=writers, readers=readers)


def stream_readers(stated: Statement, model: nn.Module, stage: int) -> StreamReaders:
    """Paths of the norms over a stream, and of the modules that read it."""
    members = members_of(stated, model, stage)
    norms = {f"{step.block}.{step.residual.norm}": step.norm for step in members.steps}
    found = {**members.vectors, **norms, **members.tail}
    readers = [path for step in members.steps for path in _paths_read(step)]
    readers += [step.path for step in (members.following,) if step is not None]
    # WHY: of several states side by side, the norm before them has masked each; a parameter that
    # reads the stream is no module.
    masked = {
        path
        for path, head in members.heads.items()
        if head.in_features != members.width or isinstance(head, Projection)
    }
    return StreamReaders(
        norms=tuple(path for path, norm in found.items() if norm is not None and is_norm(norm)),
        readers=(*readers, *(path for path in members.heads if path not in masked)),
    )


def _paths_read(step: Step) -> list[str]:
    """The modules whose first argument is what a step reads: the layer, or its linear layers."""
    if step.kind == "fixed":
        return []
    if isinstance(step.layer, AttentionLayer) and step.residual.layers[0].call.by_name:
        paths = held_in(step.layer.qkv, "weight")
        return [f"{step.path}.{path.rpartition('.')[0]}" for path in paths]
    return [step.path]


def _strided(stated: Statement, model: nn.Module, step: Step) -> nn.Conv2d:
    """The convolution that leads from one stage to the next."""
    found = start_of(stated, model, step.stage).writer
    if not isinstance(found, nn.Conv2d):
        raise UserError(f"{step.path} is no strided convolution; its stage stays as wide as it is.")
    return found


def _narrow_tail_(model: nn.Module, members: Members, kept_D: Tensor, held: Held | None) -> None:
    norms = dict(members.tail)
    with reading_once(members.heads, members.width) as heads:
        if held is not None and heads:
            for path, norm in [(p, n) for p, n in norms.items() if can_hold(n)][:1]:
                norms[path] = held_norm(norm, heads, kept_D, held)
                model.set_submodule(path, norms[path])
        for norm in norms.values():
            keep_vector_(norm, kept_D)
        for head in heads:
            keep_(head, kept_D, 1)


def _narrow_step_(step: Step, kept_D: Tensor, held: Held | None) -> None:
    norm, readers = step.norm, step.readers
    linears = [reader for reader in readers if isinstance(reader, nn.Linear)]
    before = norm is not None and not step.residual.norm_behind and len(linears) == len(readers)
    if norm is not None and held is not None and before and can_hold(norm):
        norm = held_norm(norm, linears, kept_D, held)
        step.owner.set_submodule(str(step.residual.norm), norm)
    for reader in readers:
        if isinstance(reader, nn.Conv2d):
            _narrow_inputs_(reader, kept_D, held)
        else:
            keep_(reader, kept_D, 1)
    if readers:
        keep_(step.writer, kept_D, 0)
    for vectors in (norm, step.batch_norm):
        if vectors is not None:
            keep_vector_(vectors, kept_D, step.path)
    if (scale := step.scale) is not None and step.residual.scale is not None:
        _set_(step.owner, step.residual.scale, _kept(scale, kept_D, 0))


def _narrow_inputs_(conv: nn.Conv2d, kept_D: Tensor, held: Held | None) -> None:
    """Keep these inputs of a convolution; the others stand at their means in its bias."""
    weight = conv.weight.detach()
    if held is not None and conv.bias is not None:
        gone = removed(weight.shape[1], kept_D.to(weight.device))
        constant = weight[:, gone].double().sum((2, 3)) @ held.mean_D.to(weight.device)[gone]
        conv.bias.add_(constant.to(conv.bias.dtype))
    keep_(conv, kept_D, 1)


def keep_(layer: nn.Linear | nn.Conv2d, kept_D: Tensor, axis: Literal[0, 1]) -> None:
    """Keep these outputs (axis 0) or inputs (axis 1) of a linear layer or convolution."""
    layer.weight = _kept(layer.weight, kept_D, axis)
    if axis == 0 and layer.bias is not None:
        layer.bias = _kept(layer.bias, kept_D, 0)
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(layer, f"{('out', 'in')[axis]}_{kind}", kept_D.numel())


def keep_vector_(module: nn.Module, kept_D: Tensor, path: str = "") -> None:
    """Keep these entries of a norm or LayerScale, with a batch norm's statistics."""
    for name, vector in module.named_parameters(recurse=False):
        if vector.shape == (kept_D.numel(),):
            continue
        if vector.ndim != 1:
            raise UserError(f"{path}.{name} of a {type(module).__name__} is no vector of channels.")
        setattr(module, name, _kept(vector, kept_D, 0))
    if isinstance(module, nn.BatchNorm2d):
        for name in ("running_mean", "running_var"):
            buffer = module.get_buffer(name)
            if buffer.numel() != kept_D.numel():
                setattr(module, name, buffer.index_select(0, kept_D.to(buffer.device)))
        module.num_features = kept_D.numel()
    if hasattr(module, "normalized_shape"):
        # WHY: timm's RMS norm is no subclass of torch's norms, but names its shape as they do.
        module.__dict__["normalized_shape"] = (kept_D.numel(),)


def _set_(owner: nn.Module, path: str, value: nn.Parameter) -> None:
    module, _, name = path.removesuffix("?").rpartition(".")
    owner.get_submodule(module).register_parameter(name, value)


def _kept(vector: Tensor, kept_D: Tensor, axis: int) -> nn.Parameter:
    chosen = vector.detach().index_select(axis, kept_D.to(vector.device))
    return nn.Parameter(chosen, vector.requires_grad)
