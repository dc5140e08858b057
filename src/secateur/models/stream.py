"""The residual stream as a group: what is known of everything that reads or writes its channels.

Legend: D residual width, F inputs or outputs of a member per channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

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
