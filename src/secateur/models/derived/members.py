"""All that holds channels of the residual stream of a stage, from what writes it first to last.

Legend: D residual width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from secateur.errors import UserError
from secateur.models.derived.names import member, optional, parameter, present
from secateur.models.derived.steps import Step, steps_of
from secateur.models.statement import Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The members of a stream, by path where they have one.

    `name` is the module that writes first, the stem or the transition into the stage, and `writer`
    its linear layer or convolution; `vectors` are the norms behind it, and an activation, which may
    carry a constant; `tables` are positions and tokens (..., D), those that are not read last.
    `steps` are those on the way. A stage ends at the transition `following`, the last one at the
    `tail`'s norms and the `heads`, with norms beside that no head reads (`unread`).
    """

    name: str
    writer: nn.Linear | nn.Conv2d
    vectors: dict[str, nn.Module]
    tables: dict[str, nn.Parameter] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    following: Step | None = None
    tail: dict[str, nn.Module] = field(default_factory=dict)
    heads: dict[str, nn.Linear] = field(default_factory=dict)
    unread: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Channels of the stream."""
        return self.writer.weight.shape[0]


def start_of(stated: Statement, model: nn.Module, stage: int) -> Members:
    """What writes the stream in which a stage begins, without the rest."""
    stem, transition = stated.stem, stated.transition
    while stage and (transition is None or optional(model, transition.at(stage)) is None):
        stage -= 1
    if stage and transition is not None:
        name = transition.at(stage)
        writer = f"{name}.{transition.writer}"
        behind: tuple[str | None, ...] = (transition.norm and f"{name}.{transition.norm}",)
    else:
        name, writer = stem.writer.rpartition(".")[0] or stem.writer, stem.writer
        behind = (stem.patch_norm, stem.activation, stem.norm)
    found = member(model, writer)
    if not isinstance(found, nn.Linear | nn.Conv2d):
        raise UserError(f"{writer} is a {type(found).__name__}, neither a Linear nor a Conv2d.")
    return Members(name=name, writer=found, vectors=present(model, *behind))


def members_of(
    stated: Statement, model: nn.Module, stage: int, steps: list[Step] | None = None
) -> Members:
    """All members of the stream of a stage, which begins with a transition or the stem."""
    steps = steps_of(stated, model) if steps is None else steps
    start, stem = start_of(stated, model, stage), stated.stem
    following = next((s for s in steps if s.stage == stage + 1 and s.kind == "transition"), None)
    paths = () if stage else (*stem.tokens, stem.positions, *stem.unused)
    tables = {path.removesuffix("?"): parameter(model, path) for path in paths if path}
    last = following is None
    return Members(
        name=start.name,
        writer=start.writer,
        vectors=start.vectors,
        tables={path: table for path, table in tables.items() if table is not None},
        steps=[step for step in steps if step.stage == stage and step.kind != "transition"],
        following=following,
        tail=present(model, *stated.tail.norms) if last else {},
        heads=heads_of(stated, model) if last else {},
        unread=present(model, *stated.tail.unread) if last else {},
    )


@contextmanager
def reading_once(heads: dict[str, nn.Linear], width: int) -> Iterator[list[nn.Linear]]:
    """The heads as layers of D inputs, for as long as they and their inputs are changed.

    One that reads r pooled states side by side is a layer of r times as many rows meanwhile, and
    is then given the weights of that.
    """
    once = [_stacked(head, width) for head in heads.values()]
    yield once
    for head, stacked in zip(heads.values(), once, strict=True):
        if isinstance(head, Projection):
            head.put_back_()
        if stacked is head:
            continue
        times = stacked.out_features // head.out_features
        rows_RCD = stacked.weight.detach().unflatten(0, (times, -1))
        weight = rows_RCD.transpose(0, 1).flatten(1).contiguous()
        head.weight = nn.Parameter(weight, head.weight.requires_grad)
        head.in_features = weight.shape[1]
        if head.bias is not None:
            head.bias.add_(stacked.bias.detach().unflatten(0, (times, -1)).sum(0))


def _stacked(head: nn.Linear, width: int) -> nn.Linear:
    times = head.in_features // width
    if times == 1:
        return head
    weight = head.weight.detach().unflatten(1, (times, width)).transpose(0, 1).flatten(0, 1)
    with_bias = head.bias is not None
    new = nn.Linear(width, times * head.out_features, with_bias, device="meta")
    new.weight = nn.Parameter(weight.contiguous())
    if with_bias:
        new.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))
    return new


class Projection(nn.Linear):
    """A parameter (D, C) of a model as a linear layer, while it is read or changed."""

    def __init__(self, model: nn.Module, path: str, matrix_DC: nn.Parameter) -> None:
        width, rows = matrix_DC.shape
        super().__init__(width, rows, bias=False, device="meta")
        self.weight = nn.Parameter(matrix_DC.detach().T, matrix_DC.requires_grad)
        self.__dict__.update(owner=model, path=path)

    def put_back_(self) -> None:
        """Give the model what the layer has become."""
        weight = self.weight
        matrix_DC = nn.Parameter(weight.detach().T.contiguous(), weight.requires_grad)
        setattr(self.__dict__["owner"], self.__dict__["path"], matrix_DC)


def heads_of(stated: Statement, model: nn.Module) -> dict[str, nn.Linear]:
    """What reads the last stream as linear layers, by path."""
    found = present(model, *stated.tail.classifiers)
    heads = {path: head for path, head in found.items() if isinstance(head, nn.Linear)}
    path = stated.tail.matrix
    if path is not None and (matrix_DC := parameter(model, path)) is not None:
        heads[path] = Projection(model, path, matrix_DC)
    return heads
