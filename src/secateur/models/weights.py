"""Weights of a branch in one canonical layout, whatever the host library's own.

Legend: D residual width, H heads, K query/key dims per head, V value dims per head, F hidden.
Surgery and criteria read and write only these; a family translates.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from secateur.models.types import AttentionShape, MlpShape


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
    def shape(self) -> AttentionShape:
        """Sizes in this layout."""
        heads, qk, _ = self.q_HKD.shape
        return AttentionShape(heads=heads, qk=qk, vo=self.v_HVD.shape[1])

    def to(self, dtype: torch.dtype) -> "AttentionWeights":
        """The same in another floating type, for solves."""
        exact = ("scale", "places_NN")
        names = [part.name for part in fields(self) if part.name not in exact]
        cast: dict[str, Any] = {name: _cast(getattr(self, name), dtype) for name in names}
        return replace(self, **cast)

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
            table_HT=like.table_HT if like.table_HT is None else _rows(like.table_HT, h),
        )


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
        return MlpWeights(
            readers_FD=tuple(w.detach().to(dtype) for w in self.readers_FD),
            reader_biases_F=tuple(_cast(b, dtype) for b in self.reader_biases_F),
            w2_DF=self.w2_DF.detach().to(dtype),
            b2_D=_cast(self.b2_D, dtype),
            unit_FT=_cast(self.unit_FT, dtype),
        )

    @staticmethod
    def empty(shape: MlpShape, like: "MlpWeights") -> "MlpWeights":
        """Uninitialised weights of `shape`, with biases, type and device as in `like`."""
        f = shape.hidden
        return replace(
            like,
            readers_FD=tuple(_rows(w, f) for w in like.readers_FD),
            reader_biases_F=tuple(b if b is None else _rows(b, f) for b in like.reader_biases_F),
            w2_DF=like.w2_DF.new_empty(like.w2_DF.shape[0], f),
            unit_FT=like.unit_FT if like.unit_FT is None else _rows(like.unit_FT, f),
        )


BranchWeights = AttentionWeights | MlpWeights


def _rows(like: Tensor, rows: int) -> Tensor:
    return like.new_empty(rows, *like.shape[1:])


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.detach().to(dtype)
