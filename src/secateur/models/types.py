"""The vocabulary: a stream, the branches that read from and write to it, their groups of units.

Letters used everywhere: D residual width, N tokens, H heads, K query/key dims per head,
V value dims per head, F MLP hidden neurons.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from secateur.models.derived.windows import Windows

GroupName = Literal["qk", "vo", "heads", "hidden", "branch", "block", "width", "tokens"]
BranchKind = Literal["attention", "mlp"]

ATTENTION_GROUPS: tuple[GroupName, ...] = ("qk", "vo", "heads")
MLP_GROUPS: tuple[GroupName, ...] = ("hidden",)
ALL_GROUPS: tuple[GroupName, ...] = (
    *ATTENTION_GROUPS,
    *MLP_GROUPS,
    "branch",
    "block",
    "width",
    "tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Size of something: parameters and multiply-accumulates for one image."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(params=self.params + other.params, macs=self.macs + other.macs)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(params=self.params - other.params, macs=self.macs - other.macs)

    def __mul__(self, count: int) -> "Cost":
        return Cost(params=self.params * count, macs=self.macs * count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A cost that grows linearly with the residual width D: `base + D * per_width`."""

    base: Cost = Cost()
    per_width: Cost = Cost()

    def at(self, width: int) -> Cost:
        """The cost at residual width `width`."""
        return self.base + self.per_width * width


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Sizes of an attention layer: every head has the same number of dims."""

    heads: int
    qk: int
    vo: int

    def size(self, group: GroupName) -> int:
        """Units of one group (`qk` and `vo` per head)."""
        return {"heads": self.heads, "qk": self.qk, "vo": self.vo}[group]


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpShape:
    """Size of an MLP: its hidden neurons."""

    hidden: int

    def size(self, group: GroupName) -> int:
        """Units of one group."""
        return {"hidden": self.hidden}[group]


Shape = AttentionShape | MlpShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One attention layer or MLP on the residual stream.

    `id` is its module path in the model. `refusals` says for each group that this branch cannot
    offer, why. The rates price it: `fixed` whenever it exists, the others per unit. Without a
    `writer_bias`, a repair that has a constant to carry adds one; without a `carrier`, an earlier
    bias that could take on its mean, a repair that drops it adds one too. Of the `tokens` it may
    compute the first `rows` alone, since nobody reads the others. Attention in `windows` sees its
    queries, keys, values and context in these, (B W, T, …).
    """

    id: str
    kind: BranchKind
    block: int
    width: int
    tokens: int
    shape: Shape
    fixed: Rate
    per_head: Rate = Rate()
    per_qk: Rate = Rate()
    per_qk_layer: Rate = Rate()
    per_vo: Rate = Rate()
    per_hidden: Rate = Rate()
    stage: int = 0
    writer_bias: bool = True
    carrier: bool = True
    rows: int | None = None
    refusals: Mapping[GroupName, str] = field(default_factory=dict)
    windows: Windows | None = None

    @property
    def groups(self) -> tuple[GroupName, ...]:
        """The groups of units inside this branch that can be made smaller."""
        own = ATTENTION_GROUPS if self.kind == "attention" else MLP_GROUPS
        return tuple(group for group in own if group not in self.refusals)

    @property
    def computed(self) -> int:
        """The number of tokens whose update it computes."""
        return self.tokens if self.rows is None else self.rows

    def cost(self, shape: Shape | None, width: int | None = None) -> Cost:
        """Cost of this branch, with its norm, in another shape (None: dropped)."""
        if shape is None:
            return Cost()
        width = self.width if width is None else width
        if isinstance(shape, MlpShape):
            return self.fixed.at(width) + self.per_hidden.at(width) * shape.hidden
        inside_heads = self.per_qk.at(width) * shape.qk + self.per_vo.at(width) * shape.vo
        heads = (self.per_head.at(width) + inside_heads) * shape.heads
        return self.fixed.at(width) + heads + self.per_qk_layer.at(width) * shape.qk

    def linear_cost(self, width: int | None = None) -> Cost:
        """Cost of a linear layer in the place of this branch, with its norm and LayerScale."""
        width = self.width if width is None else width
        bias = 0 if self.writer_bias else width
        params = self.fixed.at(width).params + bias + width * width
        return Cost(params=params, macs=self.computed * width * width)

    def added_by_repair(self, shape: Shape | None, width: int | None = None) -> Cost:
        """Cost of the bias that a repair adds, at most, where the writer has none.

        The constants of removed units need one, and so does the mean of the whole branch, in the
        writer before it.
        """
        if isinstance(shape, AttentionShape) and isinstance(self.shape, AttentionShape):
            whole = (shape.heads, shape.vo) == (self.shape.heads, self.shape.vo)
        else:
            whole = shape == self.shape
        if (self.writer_bias and (shape is not None or self.carrier)) or whole:
            return Cost()
        return Cost(params=self.width if width is None else width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of the stream: its branches stand or fall together in the group `block`."""

    id: str
    index: int
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The residual stream of one stage; its channels are the units of the group `width`.

    `id` names it in plans and files, and must not be that of a branch or block. `ends` prices what
    grows with it beside the branches of its stage.
    """

    id: str
    width: int
    stage: int = 0
    ends: Rate = Rate()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTransition:
    """What leads from one stream to another and costs by the channels of both."""

    first: str
    second: str
    per_pair: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInLayer:
    """A linear layer where a branch was; its cost is at the present width, with its norm.

    `id` is that of the branch. It is no branch: it stays as it is.
    """

    id: str
    block: int
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What a host model is made of. Pure data; says nothing about weights.

    `ends` is the cost of all that is not a branch: embedding, final norm, heads. `streams` are
    those that can be made narrower; where there are none, `refusals` says why. `transitions` price
    what stands between two of them, and what reads and writes one, which is part of `ends` too, as
    are
    `stand_ins`.

    The head reads the first `tail` tokens alone, and the last layers can be computed for them
    alone; where they cannot, `no_tail` says why. `merges` tells how many tokens a block merges.
    Where branches are priced so although the model computes all tokens, `as_written` is the cost of
    the model as it is.
    """

    family: str
    width: int
    tokens: int
    prefix_tokens: int
    input_size: tuple[int, int, int]
    num_classes: int
    blocks: tuple[Block, ...]
    branches: tuple[Branch, ...]
    ends: Rate
    refusals: Mapping[GroupName, str] = field(default_factory=dict)
    streams: tuple[Stream, ...] = ()
    transitions: tuple[StreamTransition, ...] = ()
    stand_ins: tuple[StandInLayer, ...] = ()
    tail: int | None = None
    no_tail: str = ""
    as_written: Cost | None = None
    merges: Mapping[str, int] = field(default_factory=dict)

    @property
    def reference(self) -> Cost:
        """The cost of the model as it is written, of which budgets in percent are a share."""
        return self.cost() if self.as_written is None else self.as_written

    def branch(self, branch_id: str) -> Branch:
        """The branch called `branch_id`; KeyError if there is none."""
        for branch in self.branches:
            if branch.id == branch_id:
                return branch
        raise KeyError(branch_id)

    def stage_of(self, block: Block) -> int:
        """The stage of a block that has branches."""
        return self.branch(block.branches[0]).stage

    @property
    def shapes(self) -> "Shapes":
        """The present shape of every branch."""
        return {branch.id: branch.shape for branch in self.branches}

    @property
    def widths(self) -> "Widths":
        """The present width of every stream that can be made narrower."""
        return {stream.id: stream.width for stream in self.streams}

    def stream_of(self, branch: Branch) -> Stream | None:
        """The stream that a branch reads and writes; None where it cannot be made narrower."""
        return next((s for s in self.streams if s.stage == branch.stage), None)

    def width_of(self, branch: Branch, widths: "Mapping[str, int]") -> int:
        """The width of a branch's stream when streams have `widths` (missing ones the present)."""
        stream = self.stream_of(branch)
        return branch.width if stream is None else widths.get(stream.id, branch.width)

    def ends_cost(self, widths: "Mapping[str, int]") -> Cost:
        """Cost of all that is not a branch when streams have `widths`."""
        total, present = self.ends.at(self.width), self.widths
        wanted = {name: widths.get(name, width) for name, width in present.items()}
        for stream in self.streams:
            total = total + stream.ends.per_width * (wanted[stream.id] - stream.width)
        for joint in self.transitions:
            pairs = wanted[joint.first] * wanted[joint.second]
            total = total + joint.per_pair * (pairs - present[joint.first] * present[joint.second])
        return total

    def cost(
        self, shapes: "Shapes | None" = None, widths: "Mapping[str, int] | None" = None
    ) -> Cost:
        """Cost of the whole model with its branches in `shapes` (missing ones are dropped).

        Streams that are missing in `widths` keep theirs.
        """
        shapes, widths = self.shapes if shapes is None else shapes, widths or {}
        total = self.ends_cost(widths)
        for branch in self.branches:
            total = total + branch.cost(shapes.get(branch.id), self.width_of(branch, widths))
        return total


Shapes = dict[str, Shape | None]
Widths = dict[str, int]
