"""safetensors files looked at before they are loaded: names, types and shapes, within bounds."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from secateur.textfiles import RepeatedName, unique

LARGEST_HEADER = 8 * 2**20
"""In bytes; a model of 10,000 tensors has a header of 1 MB."""
PREFIX = 8
"""Bytes before the header, which say how long it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the header says of a tensor: its type, as safetensors writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def entries_of(path: Path, largest: int = LARGEST_HEADER) -> dict[str, Entry]:
    """The header of a safetensors file, by tensor, without loading any.

    ValueError, in words, for a header of more than `largest` bytes, one that is longer than the
    file or no JSON of tensors, and for tensors that would not fit into the file; OSError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(PREFIX), "little")
        if size < PREFIX or length > size - PREFIX:
            raise ValueError("its header is longer than the file")
        if length > largest:
            raise ValueError(f"its header has {length} bytes, above {largest}")
        header = file.read(length)
    try:
        found = json.loads(header, object_pairs_hook=unique)
        entries = {
            name: Entry(dtype=str(about["dtype"]), shape=tuple(map(_count, about["shape"])))
            for name, about in found.items()
            if name != "__metadata__"
        }
    except RepeatedName:
        raise
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError("its header is no list of tensors") from error
    # WHY: types of less than a byte exist, so that bytes are a lower bound of eighths.
    if sum(entry.elements for entry in entries.values()) > 8 * size:
        raise ValueError("its header names more numbers than the file can hold")
    return entries


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of a text and of tensors with their names, types and shapes."""
    total = hashlib.sha256(text.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # WHY as bytes: numpy has no bfloat16.
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
        raise ValueError("no size")
    return value
