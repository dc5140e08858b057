"""One file from which a run goes on as if it had never stopped: safetensors with JSON inside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import UserError
from secateur.whole import reason_of, sweep, writing

FILE = "checkpoint.safetensors"
FORMAT = 1


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
            save_file(tensors, unfinished, metadata={"secateur": text})
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

    UserError for a file that is damaged or was not written by `write`.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("secateur", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        state: dict[str, Any] = unpack(found["state"], tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no checkpoint that this secateur can read ({error}); remove it to start "
            "afresh."
        ) from error
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
