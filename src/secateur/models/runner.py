"""Run a model from any place on, with parts left out: a row of residual steps, one per branch.

Legend: B batch, N tokens, D residual width, C outputs of the head.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from secateur.models.host import Host, host_of

NO_FILLS: Mapping[str, Tensor] = {}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Branches that a run leaves out, with the constants (D,) that some leave in the stream."""

    names: Collection[str] = ()
    fills: Mapping[str, Tensor] = field(default_factory=dict)


NOTHING = LeftOut()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The stream after each branch and at the end, and the outputs, of one batch."""

    after: Mapping[str, Tensor]
    stream_BND: Tensor
    logits_BC: Tensor


@dataclass(frozen=True, slots=True)
class Runner(Host):
    """A host and its residual steps, which share the model's modules.

    `steps[i]` takes the stream through `branches[i]`, from where the branch before left it. A
    runner is valid until a module of the model is replaced.
    """

    steps: tuple[nn.Module, ...]

    @staticmethod
    def of(host: Host | nn.Module) -> "Runner":
        """The runner of a host, or of a model, which is read."""
        host = host if isinstance(host, Host) else host_of(host)
        steps = tuple(host.through(branch) for branch in host.anatomy.branches)
        return Runner(host.model, host.family, host.anatomy, steps)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return [branch.id for branch in self.anatomy.branches]

    def arrive(self, place: int, x_BND: Tensor) -> Tensor:
        """The stream at a branch from that before its step."""
        return self.family.arrive(self.model, self.anatomy.branches[place], x_BND)

    def step(self, place: int, x_BND: Tensor) -> Tensor:
        """The stream after one branch."""
        after_BND: Tensor = self.steps[place](x_BND)
        return after_BND

    def skip(self, place: int, x_BND: Tensor, fill_D: Tensor | None = None) -> Tensor:
        """The stream after a branch that is left out, with a constant (D,) in its place."""
        arrived_BND = self.arrive(place, x_BND)
        return arrived_BND if fill_D is None else arrived_BND + fill_D.to(arrived_BND)

    def streams(
        self, x_BND: Tensor, start: int = 0, without: LeftOut = NOTHING
    ) -> Iterator[Tensor]:
        """The stream after each branch from `start` on."""
        for place, name in enumerate(self.names[start:], start):
            if name in without.names:
                x_BND = self.skip(place, x_BND, without.fills.get(name))
            else:
                x_BND = self.step(place, x_BND)
            yield x_BND

    def last(self, x_BND: Tensor, start: int = 0, without: LeftOut = NOTHING) -> Tensor:
        """The stream after the last branch from that before step `start`."""
        for after_BND in self.streams(x_BND, start, without):
            x_BND = after_BND
        return x_BND

    def finish(self, x_BND: Tensor, start: int = 0, without: LeftOut = NOTHING) -> Tensor:
        """The model's outputs from the stream before step `start`."""
        return self.family.head(self.model, self.last(x_BND, start, without))

    def without_each(
        self,
        images_BCHW: Tensor,
        base: Collection[str],
        sets: Iterable[Collection[str]],
        fills: Mapping[str, Tensor] = NO_FILLS,
    ) -> Iterator[Tensor]:
        """The outputs of the whole model, then those without each set of branches.

        The steps that a set has in common with `base`, up to the first difference, run once.
        """
        embedded_BND = self.embed(images_BCHW)
        streams = [embedded_BND, *self.streams(embedded_BND, 0, LeftOut(base, fills))]
        yield self.finish(embedded_BND) if base else self.finish(streams[-1], len(self))
        for left_out in sets:
            different = set(left_out) ^ set(base)
            apart = (place for place, name in enumerate(self.names) if name in different)
            first = min(apart, default=len(self))
            yield self.finish(streams[first], first, LeftOut(left_out, fills))

    def trace(self, images_BCHW: Tensor, channels: Tensor | None = None) -> Trace:
        """Run a batch and keep the stream after each branch, all of it or some `channels`."""
        x_BND = self.embed(images_BCHW)
        kept = slice(None) if channels is None else channels.to(x_BND.device)
        after = {}
        for name, step in zip(self.names, self.steps, strict=True):
            x_BND = step(x_BND)
            after[name] = x_BND[..., kept]
        logits_BC = self.family.head(self.model, x_BND)
        return Trace(after=after, stream_BND=x_BND[..., kept], logits_BC=logits_BC)
