"""How a granularity is registered, and what it is told about the model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from secateur.allocation.candidates import Limits
from secateur.errors import UserError
from secateur.masks.gates import Gate
from secateur.models.host import Host
from secateur.models.types import Anatomy, Branch, GroupName, Stream
from secateur.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What may be gated: these groups, in branches that offer them and are not protected.

    `linear` are the branches whose update is linear in what their writer gives, without a constant
    (`silenced_by_weights`), so that outputs of the writer can be switched off in its weights.
    """

    anatomy: Anatomy
    groups: frozenset[GroupName]
    limits: Limits
    linear: frozenset[str]

    def has(self, branch: Branch, *groups: GroupName) -> bool:
        """Whether all of `groups` may be gated in a branch."""
        if self.limits.protects(branch.id):
            return False
        return all(g in self.groups and (g == "branch" or g in branch.groups) for g in groups)

    def attentions(self, *groups: GroupName) -> list[Branch]:
        """Attention branches in which all of `groups` may be gated."""
        return [b for b in self.anatomy.branches if b.kind == "attention" and self.has(b, *groups)]

    def streams(self) -> tuple[Stream, ...]:
        """The streams that may be made narrower."""
        return self.anatomy.streams if "width" in self.groups else ()

    def mlps(self) -> list[Branch]:
        """MLPs whose neurons may be gated."""
        return [b for b in self.anatomy.branches if b.kind == "mlp" and self.has(b, "hidden")]


def silenced_by_weights(host: Host) -> frozenset[str]:
    """The branches whose update is zero where their writer gives zero.

    Not so behind a batch norm, which adds its mean and bias to whatever the writer gives.
    """
    return frozenset(
        branch.id
        for branch in host.anatomy.branches
        if host.writes_linearly(branch)
        and not any(
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            for module in host.model.get_submodule(branch.id).modules()
        )
    )


Lay = Callable[[Scope], list[Gate]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Granularity:
    """A named strategy: `lay` makes its gates; `groups` are those it gates unless told otherwise.

    `removal` says in words what of a mask can be cut out.
    """

    name: str
    title: str
    removal: str
    groups: tuple[GroupName, ...]
    lay: Lay


granularities: Registry[Granularity] = Registry("sharing strategy", "secateur.masks.granularities")


def sharing(
    name: str, *, title: str, removal: str, groups: tuple[GroupName, ...]
) -> Callable[[Lay], Lay]:
    """Register a function from a scope to gates as a granularity."""

    def file(lay: Lay) -> Lay:
        granularities.register(name)(
            Granularity(name=name, title=title, removal=removal, groups=groups, lay=lay)
        )
        return lay

    return file


def gates_of(which: Granularity, scope: Scope) -> list[Gate]:
    """The gates of a strategy; UserError when it finds nothing to gate."""
    gates = which.lay(scope)
    if not gates:
        raise UserError(
            f"sharing '{which.name}' finds nothing to gate among the groups "
            f"{', '.join(sorted(scope.groups)) or 'none'}; name other groups with --groups, "
            "protect fewer layers, or take another sharing."
        )
    return gates
