"""Tensors from files into modules: read without running code, checked by name, all or nothing."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from secateur.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SHOWN = 3

Weights = dict[str, Tensor]


def read_checkpoint(path: Path) -> Weights:
    """The tensors of a checkpoint file, on the CPU.

    `.safetensors`, or `.pth`, `.pt` and `.bin` through torch's weights-only reader. Unwraps
    {"state_dict": …} and {"model": …} (averaged weights first, as in timm) and the prefixes that
    DataParallel and torch.compile put before names. Raises UserError for anything else.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {path}.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no checkpoint file: known endings are {', '.join(SUFFIXES)}.")
    try:
        found = load_state_dict(str(path), device="cpu", weights_only=True)
    except (SafetensorError, EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(_unreadable(path, error)) from error
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise UserError(f"{path} holds no dictionary of named tensors.") from error
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds no plain weights: '{name}' is a {type(value).__name__}, no tensor."
            )
    if not found:
        raise UserError(f"{path} holds no tensors.")
    return found


def _unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Weights only" in text:
        return (
            f"{path} contains Python objects besides tensors and was not opened, since loading it "
            "could run code; save its state_dict() as .safetensors and pass that file."
        )
    return f"{path} cannot be read as a checkpoint: it is damaged or of another kind."


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError naming the first tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{where}: tensor '{name}' has NaN or infinite values ({bad} of {tensor.numel()}); "
                "the file is damaged or the training diverged."
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
    unfilled = {name for name, buffer in model.named_buffers() if buffer.is_meta}
    if not unfilled:
        return model
    real = dict(rebuild().named_buffers())
    for name in unfilled:
        if name not in real or real[name].shape != model.get_buffer(name).shape:
            raise UserError(f"buffer '{name}' of the model cannot be computed for its new shape.")
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent).register_buffer(last, real[name], persistent=False)
    return model


def common_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating type that most elements have."""
    count: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.numel()
    return max(count, key=lambda dtype: count[dtype], default=torch.float32)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
