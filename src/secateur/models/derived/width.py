"""Make the residual stream of a stage narrower: the same channels in every member.

Members are what writes the stream first (stem or transition) with its norms, tokens and positions,
the norms, scales, readers and writers of every step, and what reads it last (the next transition,
or final norm and classifiers). Legend: D residual width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.derived.layout import attention_weights, our_attention
from secateur.models.derived.names import classifiers, optional, parameter
from secateur.models.derived.steps import Step, held_whole, start_of, steps_of
from secateur.models.norms import can_hold, held_norm, is_norm
from secateur.models.statement import AttentionLayer, Statement
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
    steps = steps_of(stated, model)
    if (following := _following(steps, stage)) is None:
        _narrow_tail_(stated, model, kept_D, held.get(END))
    else:
        _narrow_inputs_(_strided(stated, model, following), kept_D, held.get(END))
    for step in steps:
        if step.stage == stage and step.kind != "transition":
            if held_whole(step) and isinstance(step.layer, AttentionLayer):
                weights = attention_weights(step.module, step.layer)
                fused = bool(getattr(step.module, stated.fused or "", True))
                new = our_attention(step.module, step.layer, weights, fused=fused)
                step.owner.set_submodule(step.residual.path, new)
            _narrow_step_(step, kept_D, held.get(step.path))
    start = start_of(stated, model, stage)
    keep_rows_(start.writer, kept_D)
    for norm in start.norms.values():
        keep_vector_(norm, kept_D)
    if stage == 0:
        for path in filter(None, (stated.stem.positions, *stated.stem.tokens)):
            if (table := parameter(model, path)) is not None:
                _set(model, path, _kept(table, kept_D, -1))
        if (act := optional(model, stated.stem.activation)) is not None:
            keep_vector_(act, kept_D)
    if following is None:
        for name in stated.sizes:
            setattr(model, name, kept_D.numel())
    if stated.resized is not None:
        stated.resized(model, stage, kept_D.numel())


def stream_ends(stated: Statement, model: nn.Module, stage: int) -> StreamWeights:
    """What writes the stream of a stage first, and what reads it last."""
    start, following = start_of(stated, model, stage), _following(steps_of(stated, model), stage)
    if following is None:
        readers = {p: head.weight.detach().T for p, head in classifiers(stated, model).items()}
    else:
        weight = _strided(stated, model, following).weight.detach()
        readers = {following.path: weight.transpose(0, 1).flatten(1)}
    writers = {start.name: start.writer.weight.detach().flatten(1)}
    return StreamWeights(writers=writers, readers=readers)


def stream_readers(stated: Statement, model: nn.Module, stage: int) -> StreamReaders:
    """Paths of the norms over a stream, and of the modules that read it."""
    steps = steps_of(stated, model)
    own = [step for step in steps if step.stage == stage and step.kind != "transition"]
    found = list(start_of(stated, model, stage).norms.items())
    found += [(f"{step.block}.{step.residual.norm}", step.norm) for step in own if step.norm]
    readers = [step.path for step in own if step.kind != "fixed"]
    following = _following(steps, stage)
    if following is not None:
        readers.append(following.path)
    else:
        found += [(path, norm) for path in stated.tail.norms if (norm := optional(model, path))]
        readers += classifiers(stated, model)
    norms = tuple(path for path, norm in found if is_norm(norm))
    return StreamReaders(norms=norms, readers=tuple(readers))


def _strided(stated: Statement, model: nn.Module, step: Step) -> nn.Conv2d:
    """The convolution that leads from one stage to the next."""
    found = start_of(stated, model, step.stage).writer
    if not isinstance(found, nn.Conv2d):
        raise UserError(f"{step.path} is no strided convolution; its stage stays as wide as it is.")
    return found


def _following(steps: list[Step], stage: int) -> Step | None:
    return next((s for s in steps if s.stage == stage + 1 and s.kind == "transition"), None)


def _narrow_tail_(stated: Statement, model: nn.Module, kept_D: Tensor, held: Held | None) -> None:
    heads = list(classifiers(stated, model).values())
    norms = {
        path: norm for path in stated.tail.norms if (norm := optional(model, path)) is not None
    }
    if held is not None and heads:
        for path, norm in [(p, n) for p, n in norms.items() if can_hold(n)][:1]:
            norms[path] = held_norm(norm, heads, kept_D, held)
            model.set_submodule(path, norms[path])
    for norm in norms.values():
        keep_vector_(norm, kept_D)
    for head in heads:
        keep_columns_(head, kept_D)


def _narrow_step_(step: Step, kept_D: Tensor, held: Held | None) -> None:
    norm, readers = step.norm, [] if step.kind == "fixed" else step.readers
    linears = [reader for reader in readers if isinstance(reader, nn.Linear)]
    before = norm is not None and not step.residual.norm_behind and len(linears) == len(readers)
    if norm is not None and held is not None and before and can_hold(norm):
        norm = held_norm(norm, linears, kept_D, held)
        step.owner.set_submodule(str(step.residual.norm), norm)
    for reader in readers:
        if isinstance(reader, nn.Conv2d):
            _narrow_inputs_(reader, kept_D, held)
    for reader in linears:
        keep_columns_(reader, kept_D)
    if readers:
        keep_rows_(step.writer, kept_D)
    for vectors in (norm, step.batch_norm):
        if vectors is not None:
            keep_vector_(vectors, kept_D, step.path)
    if (scale := step.scale) is not None and step.residual.scale is not None:
        _set(step.owner, step.residual.scale, _kept(scale, kept_D, 0))


def _narrow_inputs_(conv: nn.Conv2d, kept_D: Tensor, held: Held | None) -> None:
    """Keep these inputs of a convolution; the others stand at their means in its bias."""
    weight = conv.weight.detach()
    index = kept_D.to(weight.device)
    if held is not None and conv.bias is not None:
        gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        gone[index] = False
        constant = weight[:, gone].double().sum((2, 3)) @ held.mean_D.to(weight.device)[gone]
        conv.bias.add_(constant.to(conv.bias.dtype))
    conv.weight = nn.Parameter(weight.index_select(1, index), conv.weight.requires_grad)
    conv.in_channels = kept_D.numel()


def keep_rows_(module: nn.Module, kept_D: Tensor) -> None:
    """Keep these outputs of a linear layer or convolution."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise UserError(f"a {type(module).__name__} cannot be made narrower.")
    module.weight = _kept(module.weight, kept_D, 0)
    if module.bias is not None:
        module.bias = _kept(module.bias, kept_D, 0)
    if isinstance(module, nn.Linear):
        module.out_features = kept_D.numel()
    else:
        module.out_channels = kept_D.numel()


def keep_columns_(module: nn.Linear, kept_D: Tensor) -> None:
    """Keep these inputs of a linear layer."""
    module.weight = _kept(module.weight, kept_D, 1)
    module.in_features = kept_D.numel()


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


def _set(owner: nn.Module, path: str, value: nn.Parameter) -> None:
    module, _, name = path.removesuffix("?").rpartition(".")
    owner.get_submodule(module).register_parameter(name, value)


def _kept(vector: Tensor, kept_D: Tensor, axis: int) -> nn.Parameter:
    chosen: Callable[..., Tensor] = vector.detach().index_select
    return nn.Parameter(chosen(axis, kept_D.to(vector.device)), vector.requires_grad)
