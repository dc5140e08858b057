"""Fold a constant of the residual stream into a bias that is there anyway, so that it is free.

Legend: D residual width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.errors import UserError, short
from secateur.models.derived.members import members_of, start_of
from secateur.models.derived.names import optional
from secateur.models.derived.steps import Step, steps_before
from secateur.models.modules import ShiftedReLU
from secateur.models.statement import Statement


@torch.no_grad()
def add_constant_(stated: Statement, model: nn.Module, branch_id: str, constant_D: Tensor) -> None:
    """Let the stream at the place of a branch grow by a constant, at the nearest earlier bias.

    Fixed layers, such as pooling minus what is pooled, take nothing from a constant.
    """
    for step in reversed(steps_before(stated, model, branch_id)):
        if step.is_branch or step.kind == "linear":
            _add_to_step_(step, constant_D)
            return
        if step.kind == "transition":
            start = start_of(stated, model, step.stage)
            add_to_bias_([start.writer, *start.vectors.values()][-1], constant_D)
            return
    _add_behind_stem_(stated, model, constant_D)


def _add_to_step_(step: Step, constant_D: Tensor) -> None:
    """Let the update of a residual step grow by a constant."""
    norm, scale_D = step.norm, step.scale
    if step.residual.norm_behind and norm is not None:
        add_to_bias_(norm, constant_D)
        return
    # WHY behind the batch norm: before it, training mode would take the constant out again.
    carrier = step.batch_norm or step.writer
    if scale_D is None:
        add_to_bias_(carrier, constant_D)
        return
    weight = carrier.get_parameter("weight")
    constant_D = constant_D.to(scale_D.device)
    unscaled_D = (constant_D / scale_D).to(weight.dtype)
    # WHY: a scale of (almost) zero cannot carry a constant; it then moves into the carrier's
    # weights, where it belongs just as well.
    if not bool(torch.isfinite(unscaled_D).all()):
        weight.mul_(scale_D.view(-1, *[1] * (weight.ndim - 1)))
        if carrier.bias is not None:
            carrier.get_parameter("bias").mul_(scale_D)
        scale_D.fill_(1.0)
        unscaled_D = constant_D
    add_to_bias_(carrier, unscaled_D)


def _add_behind_stem_(stated: Statement, model: nn.Module, constant_D: Tensor) -> None:
    """Let all tokens grow by a constant before the first block."""
    stem, members = stated.stem, members_of(stated, model, 0)
    if stem.activation is not None:
        act, like = model.get_submodule(stem.activation), members.writer.weight
        if not isinstance(act, ShiftedReLU):
            act = _shift_(model, stem.activation, constant_D.numel(), like)
        act.get_parameter("bias").add_(constant_D.to(like))
        return
    if (norm := optional(model, stem.norm)) is not None:
        add_to_bias_(norm, constant_D)
        return
    tables, covered = dict(members.tables), 0
    for path in stem.unused:
        tables.pop(path.removesuffix("?"), None)
    if (positions := tables.pop((stem.positions or "").removesuffix("?"), None)) is not None:
        positions.add_(constant_D.to(positions))
        rows, columns = stated.grid(model)
        covered = positions.numel() // positions.shape[-1] - rows * columns
        covered = covered if stem.positioned is None else stem.positioned
    else:
        add_to_bias_([members.writer, *members.vectors.values()][-1], constant_D)
    for table in tables.values():
        covered -= table.numel() // table.shape[-1]
        if covered < 0:
            table.add_(constant_D.to(table))


def _shift_(model: nn.Module, path: str, width: int, like: Tensor) -> ShiftedReLU:
    """Put an activation that carries a constant, as yet zero, in place of a ReLU."""
    shifted = ShiftedReLU(like.new_zeros(width)).train(model.get_submodule(path).training)
    model.set_submodule(path, shifted.requires_grad_(like.requires_grad))
    return shifted


def give_bias_(model: nn.Module, path: str, tensors: Mapping[str, Tensor]) -> None:
    """Give a module without a bias an uninitialised one, as `add_constant_` did in a saved model.

    `tensors` are those of the file. UserError where there is no place for a bias.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise UserError(f"there is no module '{short(path)}' to have an added bias.") from error
    if type(module) is nn.ReLU and (bias := tensors.get(f"{path}.bias")) is not None:
        _shift_(model, path, bias.numel(), next(model.parameters()))
        return
    weight = getattr(module, "weight", None)
    if getattr(module, "bias", 0) is not None or not isinstance(weight, Tensor):
        raise UserError(f"module '{short(path)}' cannot have an added bias.")
    module.bias = nn.Parameter(weight.new_empty(weight.shape[0]))


@torch.no_grad()
def add_to_bias_(module: nn.Module, constant_D: Tensor) -> None:
    """Add to the bias of a linear layer or norm, which gets one where it has none.

    Raises UserError for modules that cannot have a bias, such as RMS norms.
    """
    carriers = nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d
    if not isinstance(module, carriers) or module.weight is None:
        raise UserError(
            f"a {type(module).__name__} has no bias to carry the mean of the dropped layer behind "
            "it; use repair 'none' or protect that layer."
        )
    if module.bias is None:
        weight = module.weight
        zeros_D = torch.zeros_like(constant_D, dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros_D, requires_grad=weight.requires_grad)
    module.bias.add_(constant_D.to(module.bias))


def writer_scale(step: Step) -> Tensor | None:
    """What the update is times the writer's output: LayerScale, and a batch norm in between."""
    scale_D, norm = step.scale, step.batch_norm
    if norm is None or norm.running_var is None:
        return scale_D
    weight_D = norm.weight if scale_D is None else scale_D * norm.weight
    return weight_D / (norm.running_var + norm.eps).sqrt()


def writer_shift(step: Step) -> Tensor | None:
    """What a batch norm behind the writer adds, times LayerScale."""
    norm, whole_D = step.batch_norm, writer_scale(step)
    if norm is None or norm.running_mean is None or whole_D is None:
        return None
    bias_D = norm.bias if step.scale is None else step.scale * norm.bias
    return bias_D - whole_D * norm.running_mean
