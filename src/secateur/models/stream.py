"""The residual stream as a group: everything that reads or writes its channels.

Legend: D residual width, F inputs or outputs of a member per channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.family import Family
from secateur.models.types import Anatomy, Branch, Stream
from secateur.models.weights import AttentionWeights

END = "end"
"""Stands for the place behind the last branch where the model's head reads the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What stands for channels that are removed: their mean and mean square, (D,) in fp64."""

    mean_D: Tensor
    square_D: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamWeights:
    """The members of a stream as matrices (D, F), one row per channel, by name."""

    writers: Mapping[str, Tensor] = field(default_factory=dict)
    readers: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReaders:
    """Paths of what meets a stream: norms over its channels, and modules that read it.

    Readers are whole branches, what replaced them, and what reads the stream last.
    """

    norms: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()


@runtime_checkable
class Narrowable(Protocol):
    """What a family does beside `Family` where its streams can be made narrower."""

    def narrow_(
        self,
        model: nn.Module,
        stream: Stream,
        kept_D: Tensor,
        held: Mapping[str, Held] | None = None,
    ) -> None:
        """Keep these channels (ascending indices) in every member; also works on the meta device.

        Norms normalise over what is left. With `held`, by branch and `END`, they count the removed
        channels as if these stood at their means, and so do the readers behind them.
        """
        ...

    def stream_ends(self, model: nn.Module, stream: Stream) -> StreamWeights:
        """The members that are no branch: embedding, heads."""
        ...

    def stream_readers(self, model: nn.Module, stream: Stream) -> StreamReaders:
        """Where a mask on the stream's channels acts."""
        ...


@runtime_checkable
class Rotatable(Protocol):
    """What a family does beside `Narrowable` where its stream can be expressed in another basis."""

    def why_not_rotate(self, model: nn.Module) -> str | None:
        """Why the stream of this model cannot be rotated; None if it can."""
        ...

    def rotate_(self, model: nn.Module, basis_DD: Tensor) -> None:
        """Express the stream in an orthonormal basis (its columns); outputs stay the same.

        Norms become RMS norms without a scale: what they did beside goes into readers and writers.
        """
        ...


@runtime_checkable
class Linearisable(Protocol):
    """What a family does beside `Family` where a linear layer can take the place of a branch."""

    def put_linear_(self, model: nn.Module, branch: Branch, map_DD: Tensor, bias_D: Tensor) -> None:
        """Let the update of a branch be `map_DD` times what it reads, and a constant.

        Also works on the meta device.
        """
        ...


def linearisable(family: Family) -> Linearisable | None:
    """The family as one whose branches can be replaced by linear layers; None for others."""
    return family if isinstance(family, Linearisable) else None


def rotatable(model: nn.Module, family: Family) -> Rotatable:
    """The family as one that can rotate this model's stream; UserError with the reason if not."""
    if not isinstance(family, Rotatable):
        raise UserError(
            f"the residual stream of {family.title} cannot be rotated: that takes one stream which "
            "only linear layers write and only LayerNorms or RMS norms read; take a preset that "
            "selects channels, such as magnitude with --groups width."
        )
    if why := family.why_not_rotate(model):
        raise UserError(
            f"the residual stream of this model cannot be rotated: {why}; take a preset that "
            "selects channels, such as magnitude with --groups width."
        )
    return family


def narrowable(family: Family) -> Narrowable:
    """The family as one whose streams can be made narrower; UserError for others."""
    if isinstance(family, Narrowable):
        return family
    raise UserError(f"the residual stream of {family.title} cannot be made narrower.")


@torch.no_grad()
def stream_weights(
    model: nn.Module, family: Family, anatomy: Anatomy, stream: Stream
) -> StreamWeights:
    """All members of a stream; writers include the LayerScale behind them."""
    ends = narrowable(family).stream_ends(model, stream)
    writers, readers = dict(ends.writers), dict(ends.readers)
    for branch in anatomy.branches:
        if anatomy.stream_of(branch) != stream:
            continue
        weights = family.weights(model, branch)
        if isinstance(weights, AttentionWeights):
            read = [weights.q_HKD, weights.k_HKD, weights.v_HVD]
            readers_FD, writer_DF = [w.flatten(0, 1) for w in read], weights.o_DHV.flatten(1)
        else:
            readers_FD, writer_DF = list(weights.readers_FD), weights.w2_DF
        scale_D = family.writer_scale(model, branch)
        writers[branch.id] = writer_DF if scale_D is None else scale_D[:, None] * writer_DF
        readers[branch.id] = torch.cat(readers_FD).T
    return StreamWeights(writers=writers, readers=readers)
