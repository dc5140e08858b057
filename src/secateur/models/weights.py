"""Weights of a branch in one canonical layout, whatever the host library's own.

Legend: D residual width, H heads, K query/key dims per head, V value dims per head, F hidden.
Surgery and criteria read and write only these; a family translates.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from secateur.models.types import AttentionShape, MlpShape

W = TypeVar("W", "AttentionWeights", "MlpWeights")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """softmax(scale * q k^T) v per head, then the output projection.

    Biases are None where the host has none. `scale` is the dense model's and never changes.
    Hosts that add position biases to the logits have a table of them for each head, `table_HT`,
    and say which entry belongs to which pair of tokens, `places_NN`.
    """

    q_HKD: Tensor
    k_HKD: Tensor
    v_HVD: Tensor
    o_DHV: Tensor
    qb_HK: Tensor | None
    kb_HK: Tensor | None
    vb_HV: Tensor | None
    ob_D: Tensor | None
    scale: float
    table_HT: Tensor | None = None
    places_NN: Tensor | None = None

    @property
    def logit_bias_HNN(self) -> Tensor | None:
        """What is added to the logits of each head, None for nothing."""
        return None if self.table_HT is None else self.table_HT[:, self.places_NN]

    @property
    def numel(self) -> int:
        """Number of weights, without `places_NN`."""
        held = [getattr(self, part.name) for part in fields(self) if part.name != "places_NN"]
        return sum(tensor.numel() for tensor in held if isinstance(tensor, Tensor))

    @property
    def shape(self) -> AttentionShape:
        """Sizes in this layout."""
        heads, qk, _ = self.q_HKD.shape
        return AttentionShape(heads=heads, qk=qk, vo=self.v_HVD.shape[1])

    def to(self, dtype: torch.dtype) -> "AttentionWeights":
        """The same in another floating type, for solves."""
        return _cast(self, dtype)

    @staticmethod
    def empty(shape: AttentionShape, like: "AttentionWeights") -> "AttentionWeights":
        """Uninitialised weights of `shape`, with biases, type and device as in `like`."""
        return _empty(like, {"H": shape.heads, "K": shape.qk, "V": shape.vo})


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpWeights:
    """fc2(act(fc1 x)), or fc2(act(gate x) * (value x)) when there are two readers.

    `unit_FT` holds what else belongs to single neurons, such as a batch norm before the activation.
    """

    readers_FD: tuple[Tensor, ...]
    reader_biases_F: tuple[Tensor | None, ...]
    w2_DF: Tensor
    b2_D: Tensor | None
    unit_FT: Tensor | None = None

    @property
    def shape(self) -> MlpShape:
        """Sizes in this layout."""
        return MlpShape(hidden=self.w2_DF.shape[1])

    def to(self, dtype: torch.dtype) -> "MlpWeights":
        """The same in another floating type, for solves."""
        return _cast(self, dtype)

    @staticmethod
    def empty(shape: MlpShape, like: "MlpWeights") -> "MlpWeights":
        """Uninitialised weights of `shape`, with biases, type and device as in `like`."""
        return _empty(like, {"F": shape.hidden})


BranchWeights = AttentionWeights | MlpWeights


def _cast(weights: W, dtype: torch.dtype) -> W:
    return _each(weights, lambda t, _: t.detach().to(dtype) if t.is_floating_point() else t)


def _empty(like: W, sizes: dict[str, int]) -> W:
    def new(t: Tensor, axes: str) -> Tensor:
        shape = [sizes.get(axis, old) for axis, old in zip(axes, t.shape, strict=True)]
        return t.new_empty(shape) if sizes.keys() & set(axes) else t

    return _each(like, new)


def _each(weights: W, change: Callable[[Tensor, str], Tensor]) -> W:
    """The same with every tensor changed, which is given with the letters of its axes."""
    new: dict[str, Any] = {}
    for part in fields(weights):
        value, axes = getattr(weights, part.name), part.name.rpartition("_")[2]
        if isinstance(value, Tensor):
            new[part.name] = change(value, axes)
        elif isinstance(value, tuple):
            new[part.name] = tuple(None if t is None else change(t, axes) for t in value)
    return replace(weights, **new)
