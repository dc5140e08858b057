"""Tensors into modules: checked by name, shape and value, all or nothing."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import UserError, short

SHOWN = 3

Weights = dict[str, Tensor]


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{where}: tensor '{short(name)}' has NaN or infinite values ({bad} of "
                f"{tensor.numel()}); the file is damaged or the training diverged."
            )


def misfit(model: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """How the names and shapes of `tensors` differ from those of `model`, or None."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    other = [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    found = (("missing ", missing), ("unexpected ", unexpected), ("", other))
    parts = [word + _some(names) for word, names in found if names]
    return "; ".join(parts) or None


def fill_(
    model: nn.Module, tensors: Mapping[str, Tensor], rebuild: Callable[[], nn.Module]
) -> nn.Module:
    """Give a module on the meta device these tensors, which must fit, without copying them.

    Buffers that are in no file are taken from `rebuild()`, a real module of the same build.
    """
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    unfilled = {name for name, buffer in _buffers(model).items() if buffer.is_meta}
    if not unfilled:
        return model
    real = _buffers(rebuild())
    for name in unfilled:
        if name not in real or real[name].shape != model.get_buffer(name).shape:
            raise UserError(f"buffer '{name}' of the model cannot be computed for its new shape.")
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent).register_buffer(last, real[name], persistent=False)
    return model


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers by name, at every place that uses one."""
    return dict(model.named_buffers(remove_duplicate=False))


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating type that most elements have."""
    count: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.numel()
    return max(count, key=lambda dtype: count[dtype], default=torch.float32)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(short, names[:SHOWN])) + more
