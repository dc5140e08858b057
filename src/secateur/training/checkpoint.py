"""One file from which a run goes on as if it had never stopped: safetensors with JSON inside.

A checksum over all of it is kept inside as well, so that a file that was changed is not gone on
from.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import Advice, UserError, short
from secateur.tensorfiles import digest, entries_of
from secateur.whole import reason_of, sweep, writing

FILE = "checkpoint.safetensors"
FORMAT = 2
WITHOUT_CHECKSUM = 1
"""The format of earlier versions."""
LARGEST_HEADER = 64 * 2**20
"""In bytes; the header holds the curves of the run."""


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a tree of numbers, strings, tensors and containers, whole or not at all.

    UserError when that cannot be done, such as on a full disk; an older checkpoint stays.
    """
    path = folder / FILE
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"format": FORMAT, "state": pack(dict(state), "", tensors)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with writing(path) as unfinished:
            about = {"secateur": text, "sha256": digest(text, tensors)}
            save_file(tensors, unfinished, metadata=about)
    except (OSError, SafetensorError) as error:
        kept = "the one before it is whole" if path.is_file() else "there is none before it"
        raise UserError(
            f"cannot write the checkpoint {path}: {reason_of(error)}; {kept}; free some space and "
            "give the same command again."
        ) from error
    finally:
        # Earlier versions wrote to this name.
        (folder / f".{FILE}.unfinished").unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove the checkpoint, and what killed runs left of others, where there are any."""
    (folder / FILE).unlink(missing_ok=True)
    (folder / f".{FILE}.unfinished").unlink(missing_ok=True)
    sweep(folder / FILE)


def read(folder: Path) -> dict[str, Any] | None:
    """What `write` wrote, on the CPU; None where there is no checkpoint.

    UserError for a file that was changed, is damaged or was not written by `write`. Files of
    earlier versions have no checksum: they are read as they are, and Advice says so.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        entries_of(path, LARGEST_HEADER)
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = _checked(path, about, tensors)
    except (
        AttributeError, LookupError, OSError, RecursionError, SafetensorError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise UserError(
            f"{path} is no checkpoint that this secateur can read ({short(error)}); remove it to "
            "start afresh."
        ) from error
    return state


def _checked(path: Path, about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state in a file whose checksum, if it has one, is right."""
    text = about["secateur"]
    if "sha256" in about and about["sha256"] != digest(text, tensors):
        raise ValueError("it was changed after it was written: its SHA-256 differs")
    found = json.loads(text)
    wanted = FORMAT if "sha256" in about else WITHOUT_CHECKSUM
    if found["format"] != wanted:
        raise ValueError(f"format {found['format']}")
    if wanted == WITHOUT_CHECKSUM:
        warnings.warn(
            f"{path} was written by an earlier version, without a checksum: whether it is still "
            "as it was written cannot be told",
            Advice,
            stacklevel=3,
        )
    state: dict[str, Any] = unpack(found["state"], tensors)
    return state


def pack(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    """A tree as JSON; its tensors go to `tensors` by their place in the tree."""
    if isinstance(value, Tensor):
        # WHY a copy: tensors that share memory are not written by safetensors.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = value.items()
        return {"map": [[key, pack(item, f"{name}/{key}", tensors)] for key, item in items]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in a checkpoint ({name})")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if not isinstance(value, dict):
        return value
    (kind, inner), *rest = value.items()
    if rest or kind not in ("tensor", "map", "list", "tuple"):
        raise ValueError("damaged")
    if kind == "tensor":
        return tensors[inner]
    if kind == "map":
        return {key: unpack(item, tensors) for key, item in inner}
    items = [unpack(item, tensors) for item in inner]
    return items if kind == "list" else tuple(items)


def copy_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a model, apart from it."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
