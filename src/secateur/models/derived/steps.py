"""The steps of a model in order, read off its statement.

Legend: D residual width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from secateur.errors import UserError
from secateur.models.derived.layout import out_of
from secateur.models.derived.names import linear, member, optional, parameter
from secateur.models.modules import LinearStandIn, PartialBlock, SlimAttention
from secateur.models.statement import (
    AttentionLayer,
    FixedLayer,
    Holds,
    Layer,
    MlpLayer,
    Residual,
    Separate,
    Statement,
)

Kind = Literal["attention", "mlp", "fixed", "linear", "transition"]
Place = tuple[int, int]
"""Number of the block, and of the step in it; -1 for a transition before the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that the stream meets on its way: a branch, or what is none.

    `owner` is the block, or the transition's own module. `grid` are the rows and columns of what
    comes in where the host holds a grid, None where it holds tokens; `tokens` come out.
    """

    path: str
    kind: Kind
    place: Place
    stage: int
    owner: nn.Module
    grid: tuple[int, int] | None
    tokens: int
    residual: Residual = Residual(layers=())  # noqa: RUF009 (frozen)
    layer: Layer | None = None

    @property
    def is_branch(self) -> bool:
        """Whether it can be made smaller or dropped."""
        return self.kind in ("attention", "mlp")

    @property
    def block(self) -> str:
        """Path of the block."""
        return self.path.removesuffix(f".{self.residual.path}")

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.owner.get_submodule(self.residual.path)

    @property
    def norm(self) -> nn.Module | None:
        """The norm of the step, before or behind the layer."""
        return optional(self.owner, self.residual.norm)

    @property
    def scale(self) -> nn.Parameter | None:
        """LayerScale's vector (D,)."""
        return parameter(self.owner, self.residual.scale)

    @property
    def batch_norm(self) -> nn.BatchNorm2d | None:
        """The batch norm behind the writer."""
        behind = self.layer.norm_behind if isinstance(self.layer, MlpLayer) else None
        found = optional(self.module, behind)
        return found if isinstance(found, nn.BatchNorm2d) else None

    @property
    def writer(self) -> nn.Linear | nn.Conv2d:
        """The linear layer that writes what is added to the stream."""
        if isinstance(self.layer, AttentionLayer):
            return linear(self.module, out_of(self.module, self.layer))
        if isinstance(self.layer, MlpLayer):
            return linear(self.module, self.layer.writer)
        return linear(self.owner, self.residual.path)

    @property
    def readers(self) -> list[nn.Linear | nn.Conv2d]:
        """The linear layers that read the stream behind the norm."""
        layer, module = self.layer, self.module
        if isinstance(layer, MlpLayer):
            return [linear(module, name) for name in layer.readers]
        if not isinstance(layer, AttentionLayer):
            return [self.writer] if self.kind == "linear" else []
        if isinstance(module, SlimAttention):
            return [module.qkv]
        qkv, gate = layer.qkv, optional(module, layer.gate)
        if isinstance(qkv, Separate):
            paths = [qkv.q, qkv.k, qkv.v]
        else:
            paths = [qkv.weight.rpartition(".")[0]]
        paths += [layer.gate] if layer.gate and gate is not None else []
        return [linear(module, path) for path in paths]


def held_whole(step: Step) -> bool:
    """Whether a host's attention layer computes correctly in its dense shape and width only."""
    if not isinstance(step.layer, AttentionLayer) or isinstance(step.module, SlimAttention):
        return False
    return step.layer.holds is Holds.NOTHING


@dataclass(frozen=True, slots=True)
class Start:
    """What writes a stream first, and the norms behind it, by path."""

    name: str
    writer: nn.Linear | nn.Conv2d
    norms: dict[str, nn.Module]

    @property
    def width(self) -> int:
        """Channels of the stream."""
        return self.writer.weight.shape[0]


def start_of(stated: Statement, model: nn.Module, stage: int) -> Start:
    """Where the stream of a stage begins: the stem, or the transition into the stage."""
    stem, transition = stated.stem, stated.transition
    while stage and (transition is None or optional(model, transition.at(stage)) is None):
        stage -= 1
    name, writer, norms = stem.writer.partition(".")[0], stem.writer, [stem.patch_norm, stem.norm]
    if stage and transition is not None:
        name = transition.at(stage)
        writer = f"{name}.{transition.writer}"
        norms = [] if transition.norm is None else [f"{name}.{transition.norm}"]
    found = member(model, writer)
    if not isinstance(found, nn.Linear | nn.Conv2d):
        raise UserError(f"{writer} is a {type(found).__name__}, neither a Linear nor a Conv2d.")
    present = {path: norm for path in norms if path and (norm := optional(model, path)) is not None}
    return Start(name, found, present)


def blocks_of(stated: Statement, model: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    """Stage, path and module of every block, in order, one that flattens included."""
    before, _, rest = stated.blocks.partition(".*")
    stages = [before]
    if inner := rest.removesuffix(".*").removeprefix("."):
        stages = [f"{before}.{name}.{inner}" for name in _children(model, before)]
    for stage, path in enumerate(stages):
        for name, block in _children(model, path).items():
            yield stage, f"{path}.{name}", block


def _children(model: nn.Module, path: str) -> dict[str, nn.Module]:
    found = member(model, path)
    assert isinstance(found, nn.Module)
    return dict(found.named_children())


def residuals_of(stated: Statement, path: str, block: nn.Module) -> tuple[Residual, ...]:
    """The steps of a block as its host has them; UserError for classes of blocks not known."""
    if isinstance(block, PartialBlock):
        return block.residuals
    found = stated.residuals.get(type(block).__name__)
    if found is None:
        raise UserError(
            f"{path} is a {type(block).__name__}, whose attention and MLP are not known to write "
            f"to the stream one after the other; of {stated.title}'s blocks only "
            f"{', '.join(stated.residuals)} are supported."
        )
    return found


def steps_of(stated: Statement, model: nn.Module, *, dropped: bool = False) -> list[Step]:
    """All that the stream meets between stem and tail, in order; also where branches `dropped`."""
    grid, flat, prefix = stated.grid(model), not stated.grids, stated.prefix(model)
    steps: list[Step] = []
    met, number, transition = 0, -1, stated.transition
    for stage, path, block in blocks_of(stated, model):
        if stage > met and transition and (owner := optional(model, transition.at(stage))):
            came, stride = grid, transition.stride(owner)
            grid = (grid[0] // stride, grid[1] // stride)
            steps.append(
                Step(
                    path=transition.at(stage),
                    kind="transition",
                    place=(number + 1, -1),
                    stage=stage,
                    owner=owner,
                    grid=None if flat else came,
                    tokens=prefix + grid[0] * grid[1],
                )
            )
        met = stage
        if type(block).__name__ == stated.flatten:
            flat = True
            continue
        number += 1
        for part, residual in enumerate(residuals_of(stated, path, block)):
            gone = isinstance(block, PartialBlock) and residual not in block.steps
            if gone and not dropped:
                continue
            at = f"{path}.{residual.path}"
            kind, layer = ("fixed", None) if gone else kind_of(at, block, residual)
            steps.append(
                Step(
                    path=at,
                    kind=kind,
                    place=(number, part),
                    stage=stage,
                    owner=block,
                    grid=None if flat else grid,
                    tokens=prefix + grid[0] * grid[1],
                    residual=residual,
                    layer=layer,
                )
            )
    return steps


def kind_of(path: str, block: nn.Module, residual: Residual) -> tuple[Kind, Layer | None]:
    """What stands at a step; UserError for a class that cannot be read."""
    module = member(block, residual.path)
    if isinstance(module, LinearStandIn):
        return "linear", None
    name, own = type(module).__name__, isinstance(module, SlimAttention)
    for layer in residual.layers:
        if name in layer.classes or (own and isinstance(layer, AttentionLayer)):
            if isinstance(layer, FixedLayer):
                return "fixed", layer
            return ("attention" if isinstance(layer, AttentionLayer) else "mlp"), layer
    known = ", ".join(name for layer in residual.layers for name in layer.classes)
    raise UserError(f"{path} is a {name}, a layer that secateur cannot read; supported: {known}.")


def steps_before(stated: Statement, model: nn.Module, branch_id: str) -> list[Step]:
    """The steps before the place of a branch, whether it is still there or was dropped."""
    places = {step.path: step.place for step in steps_of(stated, model, dropped=True)}
    return [step for step in steps_of(stated, model) if step.place < places[branch_id]]


def since_branch(steps: list[Step]) -> list[Step]:
    """The steps after the last branch."""
    last = max((i for i, step in enumerate(steps) if step.is_branch), default=-1)
    return steps[last + 1 :]
