"""Files of weights as training scripts leave them: read without running code, unwrapped, checked.

Readers of such files trust them in many ways; this one bounds what they may ask for first.
"""

import argparse
import io
import pickletools
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import Advice, UserError, short
from secateur.storage.weights import Weights, misfit
from secateur.tensorfiles import entries_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")
PLAIN = ("state_dict", "model_state_dict", "model")
"""Entries under which training scripts keep weights, in the order in which they are taken."""
PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "model.", "backbone.")
"""What DataParallel, torch.compile, Lightning and wrapping modules put before every name."""
COUNTERS = ("n_averaged",)
"""Names that wrappers keep beside the weights."""
MOST_TENSORS = 2**17
LARGEST_PICKLE = 4 * 2**20
"""In bytes, of the part of a file that is no numbers."""
PICKLES = 5
SPARE = 2**20
"""Bytes by which the parts of a file may exceed it."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FORBIDDEN = ("bytearray",)
"""Of the names that torch's reader allows, those that make objects of any size from a number."""


def read_checkpoint(path: Path, model: nn.Module | None = None) -> Weights:
    """The tensors of a checkpoint file, on the CPU.

    `.safetensors`, or the others of SUFFIXES through torch's weights-only reader. Unwraps the
    entries in which training scripts keep weights, averaged ones first (Advice says which was taken
    of several), and a prefix that all names share unless those of `model` share it. Where names do
    not fit `model`, the filter that timm has for its class is tried. Raises UserError for
    everything but named, dense floating-point tensors (and integers where `model` has such).
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {path}.")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is no checkpoint file: known endings are {', '.join(SUFFIXES)}.")
    found = _weights(path, _read(path))
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds no plain weights: '{short(name)}' is a {type(value).__name__}, no "
                "tensor."
            )
    if not found:
        raise UserError(f"{path} holds no tensors.")
    if len(found) > MOST_TENSORS:
        raise UserError(f"{path} holds {len(found)} tensors, more than any model.")
    wanted = {} if model is None else model.state_dict()
    for name, tensor in found.items():
        _check(path, name, tensor)
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found.values()
    }
    if sum(storages.values()) > path.stat().st_size + SPARE:
        raise UserError(f"{path} names more numbers than it holds; it is damaged.")
    found = _without_prefix(found, wanted)
    if model is not None and misfit(model, found) is not None:
        found = _filtered(model, found)
    for name, tensor in found.items():
        _check_type(path, name, tensor, wanted.get(name))
    return {name: tensor.detach() for name, tensor in found.items()}


def _read(path: Path) -> object:
    """What a file holds, after a look at how large that may become."""
    try:
        if path.suffix == ".safetensors":
            entries_of(path)
            return load_file(path)
        _look_at(path)
        # WHY Namespace: checkpoints of timm's training script hold one, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        # WHY: on damaged files, torch's reader raises whatever its parts do.
        raise UserError(_unreadable(path, error)) from error


def _look_at(path: Path) -> None:
    """ValueError for files that would not be read, or become larger than they are."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            _look_at_pickle(file.read(min(size, LARGEST_PICKLE)))
            return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > size + SPARE:
            raise UserError(
                f"{path} is an archive that unpacks to more than its own size, which no checkpoint "
                "does; it was not opened."
            )
        if len(parts) > MOST_TENSORS or len({part.filename for part in parts}) < len(parts):
            raise ValueError("not the parts of a checkpoint")
        for part in parts:
            if part.filename.endswith(".pkl"):
                if part.file_size > LARGEST_PICKLE:
                    raise ValueError("more than tensors")
                _look_at_pickle(archive.read(part))


def _look_at_pickle(content: bytes) -> None:
    """ValueError for pickles that name what makes objects of any size.

    Files of old versions of torch are five pickles, one behind the other, and then numbers.
    """
    file = io.BytesIO(content)
    for _ in range(PICKLES):
        for _, argument, _ in pickletools.genops(file):
            if isinstance(argument, str) and argument.split(" ")[-1] in FORBIDDEN:
                raise ValueError(f"a {argument} is no part of a checkpoint")
        if file.tell() == len(content):
            break


def _unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Weights only" in text:
        return (
            f"{path} contains Python objects besides tensors and was not opened, since loading it "
            "could run code; save its state_dict() as .safetensors and pass that file."
        )
    return f"{path} cannot be read as a checkpoint: it is damaged or of another kind."


def _weights(path: Path, found: object) -> dict[str, Any]:
    """The weights among all that a checkpoint holds."""
    for _ in range(3):
        if not isinstance(found, Mapping):
            raise UserError(f"{path} holds no dictionary of named tensors.")
        known = [
            key for key in (*AVERAGED, *PLAIN) if isinstance(found.get(key), Mapping) and found[key]
        ]
        if not known:
            break
        if len(known) > 1:
            kind = "averaged weights" if known[0] in AVERAGED else "weights"
            others = " and ".join(f"'{key}'" for key in known[1:])
            warnings.warn(
                f"took the {kind} '{known[0]}' of {path}, which holds {others} as well",
                Advice,
                stacklevel=4,
            )
        found = found[known[0]]
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds no dictionary of named tensors.")
    return dict(found)


def _check(path: Path, name: str, tensor: Tensor) -> None:
    """UserError for tensors that are not plain numbers in the file."""
    kind = None
    if type(tensor) not in (Tensor, nn.Parameter):
        kind = f"is a {type(tensor).__name__}"
    elif tensor.is_quantized:
        kind = "is quantised"
    elif tensor.layout != torch.strided or tensor.is_nested:
        kind = "is sparse"
    elif tensor.device.type != "cpu":
        kind = "has no values"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = "is larger than its part of the file"
    if kind is not None:
        raise UserError(
            f"{path}: tensor '{short(name)}' {kind}; give dense floating-point weights."
        )


def _check_type(path: Path, name: str, tensor: Tensor, wanted: Tensor | None) -> None:
    """UserError for a type that the model's own tensor of this name could not be converted from."""
    if tensor.dtype in FLOATS:
        return
    plain = not tensor.is_floating_point() and not tensor.is_complex()
    if plain and wanted is not None and not wanted.is_floating_point():
        return
    if plain and wanted is None and not name.endswith((".weight", ".bias")):
        # Counters and tables of indices, which some models have.
        return
    raise UserError(
        f"{path}: tensor '{short(name)}' is of type {str(tensor.dtype).removeprefix('torch.')}; "
        "convert the weights to float32, and save them again."
    )


def _without_prefix(tensors: Weights, wanted: Iterable[str]) -> Weights:
    """The tensors without the prefixes that all names share, unless all of `wanted` do."""
    wanted = list(wanted)
    while True:
        names = [name for name in tensors if name not in COUNTERS]
        shared = next((p for p in PREFIXES if names and all(n.startswith(p) for n in names)), None)
        if shared is None or (wanted and all(name.startswith(shared) for name in wanted)):
            return tensors
        tensors = {name.removeprefix(shared): tensors[name] for name in names}


def _filtered(model: nn.Module, tensors: Weights) -> Weights:
    """What timm's filter for the class of `model` makes of foreign names, where that fits better.

    Nothing is resampled to other sizes: whoever wants that trains the model (`load_to_train`).
    """
    module = sys.modules.get(type(model).__module__)
    convert: Callable[..., Any] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None or not type(model).__module__.startswith("timm."):
        return tensors
    sizes = {tensor.numel() for tensor in tensors.values()}
    try:
        made = convert(dict(tensors), model)
    except Exception:
        # WHY: filters expect what they know; anything else is told by its names.
        return tensors
    if not isinstance(made, Mapping) or not all(isinstance(t, Tensor) for t in made.values()):
        return tensors
    made = {name: tensor for name, tensor in made.items() if tensor is not None}
    wanted = model.state_dict().keys()
    # WHY: linear layers may be put together from several; all else of a new size was resampled.
    resampled = any(
        made[name].numel() not in sizes
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        for name in wanted & made.keys()
    )
    better = len(wanted & made.keys()) > len(wanted & tensors.keys())
    return made if better and not resampled else tensors
