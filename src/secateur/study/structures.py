"""What a study may remove, and which scores can choose it."""

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.criteria import criteria
from secateur.models.types import BranchKind, GroupName

StructureName = Literal["attention", "mlp", "joint", "block", "heads", "qk", "vo", "hidden"]
STRUCTURES: tuple[str, ...] = get_args(StructureName)
OWN = "own"
"""Structure and repair of a row that is a preset: its groups and its repair are its own."""
SEARCHES = ("greedy", "evolutionary")
"""Scores of a study that are no criteria: searches by the divergence of the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A sort of thing to remove: its group, and for `branch` of which kind (None: both)."""

    name: StructureName
    title: str
    group: GroupName
    kind: BranchKind | None = None

    @property
    def whole(self) -> bool:
        """Whether whole layers go rather than parts of every layer."""
        return self.group in ("branch", "block")


_ALL = (
    Structure(name="attention", title="attention layers", group="branch", kind="attention"),
    Structure(name="mlp", title="MLPs", group="branch", kind="mlp"),
    Structure(name="joint", title="attention layers or MLPs", group="branch"),
    Structure(name="block", title="blocks", group="block"),
    Structure(name="heads", title="heads", group="heads"),
    Structure(name="qk", title="query/key dims", group="qk"),
    Structure(name="vo", title="value dims", group="vo"),
    Structure(name="hidden", title="MLP neurons", group="hidden"),
)
BY_NAME: dict[str, Structure] = {structure.name: structure for structure in _ALL}


def can_score(score: str, structure: Structure) -> bool:
    """Whether a criterion or search can choose among the units of a structure."""
    if score in SEARCHES:
        return structure.whole
    return structure.group in criteria.get(score).needs


def score_names() -> list[str]:
    """All that a study's `scores` may name."""
    return sorted([*criteria.names(), *SEARCHES])
