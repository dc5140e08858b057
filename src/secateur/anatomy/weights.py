"""Weights of a branch in one canonical layout, whatever the host library's own.

Legend: D residual width, H heads, K query/key dims per head, V value dims per head, F hidden.
Surgery and criteria read and write only these; a family translates.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from secateur.anatomy.types import AttentionShape, MlpShape


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """softmax(scale * q k^T) v per head, then the output projection.

    Biases are None where the host has none. `scale` is the dense model's and never changes.
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

    @property
    def shape(self) -> AttentionShape:
        """Sizes in this layout."""
        heads, qk, _ = self.q_HKD.shape
        return AttentionShape(heads=heads, qk=qk, vo=self.v_HVD.shape[1])

    def to(self, dtype: torch.dtype) -> "AttentionWeights":
        """A copy in another floating type, for solves."""
        return _map(self, dtype)

    @staticmethod
    def empty(shape: AttentionShape, like: "AttentionWeights") -> "AttentionWeights":
        """Uninitialised weights of `shape`, with biases, type and device as in `like`."""
        h, k, v, d = shape.heads, shape.qk, shape.vo, like.q_HKD.shape[2]

        def new(old: Tensor | None, *size: int) -> Tensor | None:
            return None if old is None else old.new_empty(size)

        return replace(
            like,
            q_HKD=like.q_HKD.new_empty(h, k, d),
            k_HKD=like.k_HKD.new_empty(h, k, d),
            v_HVD=like.v_HVD.new_empty(h, v, d),
            o_DHV=like.o_DHV.new_empty(like.o_DHV.shape[0], h, v),
            qb_HK=new(like.qb_HK, h, k),
            kb_HK=new(like.kb_HK, h, k),
            vb_HV=new(like.vb_HV, h, v),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpWeights:
    """fc2(act(fc1 x)), or fc2(act(gate x) * (value x)) when there are two readers."""

    readers_FD: tuple[Tensor, ...]
    reader_biases_F: tuple[Tensor | None, ...]
    w2_DF: Tensor
    b2_D: Tensor | None

    @property
    def shape(self) -> MlpShape:
        """Sizes in this layout."""
        return MlpShape(hidden=self.w2_DF.shape[1])

    def to(self, dtype: torch.dtype) -> "MlpWeights":
        """A copy in another floating type, for solves."""
        return _map(self, dtype)

    @staticmethod
    def empty(shape: MlpShape, like: "MlpWeights") -> "MlpWeights":
        """Uninitialised weights of `shape`, with biases, type and device as in `like`."""
        f = shape.hidden
        return replace(
            like,
            readers_FD=tuple(w.new_empty(f, w.shape[1]) for w in like.readers_FD),
            reader_biases_F=tuple(
                None if b is None else b.new_empty(f) for b in like.reader_biases_F
            ),
            w2_DF=like.w2_DF.new_empty(like.w2_DF.shape[0], f),
        )


BranchWeights = AttentionWeights | MlpWeights


def _map(weights, dtype):  # type: ignore[no-untyped-def]
    def cast(value):  # type: ignore[no-untyped-def]
        if isinstance(value, Tensor):
            return value.detach().to(dtype)
        if isinstance(value, tuple):
            return tuple(cast(item) for item in value)
        return value

    return replace(weights, **{f.name: cast(getattr(weights, f.name)) for f in fields(weights)})
