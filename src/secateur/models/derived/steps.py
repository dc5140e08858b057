"""The steps of a model in order, read off its statement.

Legend: D residual width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from secateur.errors import UserError
from secateur.models.derived.blocks import PartialBlock, as_rows, as_tokens, windows_of
from secateur.models.derived.layout import attention_weights, held_in, ours
from secateur.models.derived.names import linear, member, optional, parameter, stands_at
from secateur.models.derived.windows import Windows
from secateur.models.hook_points import View, whole
from secateur.models.modules import LinearStandIn, SlimAttention
from secateur.models.statement import (
    AttentionLayer,
    FixedLayer,
    Holds,
    Layer,
    MlpLayer,
    Residual,
    Statement,
    TabulatedBias,
)
from secateur.models.weights import AttentionWeights

Kind = Literal["attention", "mlp", "fixed", "linear", "transition"]
Grid = tuple[int, int]
Linears = list[nn.Linear | nn.Conv2d]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that the stream meets on its way: a branch, or what is none.

    `owner` is the block, or the transition's own module, `place` the number of the block and of the
    step in it (-1 for a transition before the block). `grid` are the rows and columns of what
    comes in where the host holds a grid, its channels `last` or second, and None where it holds
    tokens; `tokens` come out. `layer` are the facts of what stands there, which is ours where that
    took the place of the host's. Of the tokens it may compute the first `rows` alone. So many pairs
    of tokens it `matches`.
    """

    path: str
    kind: Kind
    place: tuple[int, int]
    stage: int
    owner: nn.Module
    grid: Grid | None
    tokens: int
    last: bool = False
    residual: Residual = Residual(layers=())  # noqa: RUF009 (frozen)
    layer: Layer | None = None
    rows: int | None = None
    matches: int = 0

    @property
    def computed(self) -> int:
        """The number of tokens whose update it computes."""
        return self.tokens if self.rows is None else self.rows

    @property
    def is_branch(self) -> bool:
        """Whether it can be made smaller or dropped."""
        return self.kind in ("attention", "mlp")

    @property
    def held_whole(self) -> bool:
        """Whether it is attention that computes correctly in its dense shape and width only."""
        return isinstance(self.layer, AttentionLayer) and self.layer.holds is Holds.NOTHING

    @property
    def unseen(self) -> bool:
        """Whether it is attention that computes past its modules, where hooks see nothing."""
        layer, module = self.layer, self.module
        if not isinstance(layer, AttentionLayer):
            return False
        paths = (*held_in(layer.qkv, "weight"), *held_in(layer.qkv, "bias"))
        own = any("." not in path and parameter(module, path) is not None for path in paths)
        return own or isinstance(layer.position_bias, TabulatedBias)

    @property
    def scale_module(self) -> nn.Module | None:
        """The module that applies LayerScale, where it is no bare parameter of the block."""
        path = (self.residual.scale or "").rpartition(".")[0]
        return optional(self.owner, path or None)

    @property
    def biases(self) -> nn.Module | None:
        """The module of the block that gives an attention layer its biases of the logits."""
        stated = self.layer.position_bias if isinstance(self.layer, AttentionLayer) else None
        beside = stated.beside if isinstance(stated, TabulatedBias) else None
        return optional(self.owner, beside)

    @property
    def attention(self) -> AttentionWeights:
        """The weights of an attention layer."""
        assert isinstance(self.layer, AttentionLayer)
        return attention_weights(self.module, self.layer, self.biases)

    @property
    def block(self) -> str:
        """Path of the block."""
        return self.path.removesuffix(f".{self.residual.path}")

    @property
    def module(self) -> nn.Module:
        """The layer."""
        return self.owner.get_submodule(self.residual.path)

    @property
    def windows(self) -> Windows | None:
        """The windows that the layer works in."""
        found = windows_of(self.residual, self.owner)
        return None if found is None or self.grid is None else found.on(self.grid)

    @property
    def view(self) -> View:
        """How to see the stream at this step as tokens."""
        return whole if self.grid is None else as_rows if self.last else as_tokens

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
            return linear(self.module, self.layer.out)
        if isinstance(self.layer, MlpLayer):
            return linear(self.module, self.layer.writer)
        return linear(self.owner, self.residual.path)

    @property
    def readers(self) -> Linears:
        """The linear layers that read the stream behind the norm."""
        layer, module = self.layer, self.module
        if isinstance(layer, MlpLayer):
            return [linear(module, name) for name in layer.readers]
        if not isinstance(layer, AttentionLayer):
            return [self.writer] if self.kind == "linear" else []
        paths = [path.rpartition(".")[0] for path in held_in(layer.qkv, "weight")]
        if layer.gate is not None and optional(module, layer.gate) is not None:
            paths.append(layer.gate)
        return [linear(module, path) for path in paths]


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


def steps_of(
    stated: Statement, model: nn.Module, *, dropped: bool = False, at: str | None = None
) -> list[Step]:
    """All that the stream meets between stem and tail, in order; also where branches `dropped`.

    With `at`, the path of a branch, only the steps of its block and the transitions.
    """
    grid, flat, prefix = stated.grid(model), not stated.grids, stated.prefix(model)
    steps: list[Step] = []
    met, number, transition = 0, -1, stated.transition

    def add(path: str, kind: Kind, part: int, owner: nn.Module, came: Grid, **facts: Any) -> None:
        place, tokens = (number + (part < 0), part), prefix + grid[0] * grid[1]
        came_in = None if flat else came
        where: dict[str, Any] = {"place": place, "stage": stage, "grid": came_in, "tokens": tokens}
        last = stated.grids == "BHWD"
        steps.append(Step(path=path, kind=kind, owner=owner, last=last, **where, **facts))

    for stage, path, block in blocks_of(stated, model):
        if stage > met and transition and (owner := optional(model, transition.at(stage))):
            came, stride = grid, transition.stride(owner)
            grid = (-(-grid[0] // stride), -(-grid[1] // stride))
            add(transition.at(stage), "transition", -1, owner, came)
        met = stage
        if type(block).__name__ == stated.flatten:
            flat = True
            continue
        number += 1
        if at is not None and not at.startswith(f"{path}."):
            continue
        for part, residual in enumerate(residuals_of(stated, path, block)):
            gone = isinstance(block, PartialBlock) and residual not in block.steps
            if gone and not dropped:
                continue
            whole = f"{path}.{residual.path}"
            kind, layer = ("fixed", None) if gone else _read(whole, block, residual)
            add(whole, kind, part, block, grid, residual=residual, layer=layer)
    return steps


def _read(path: str, block: nn.Module, residual: Residual) -> tuple[Kind, Layer | None]:
    """What stands at a step; UserError for a class that cannot be read."""
    module = member(block, residual.path)
    if isinstance(module, LinearStandIn):
        return "linear", None
    name = type(module).__name__
    if isinstance(module, SlimAttention):
        for layer in residual.layers:
            if isinstance(layer, AttentionLayer):
                return "attention", ours(layer, module)
    found = [layer for layer in residual.layers if name in layer.classes]
    for layer in [one for one in found if _has_weights(module, one)] or found:
        if isinstance(layer, FixedLayer):
            return "fixed", layer
        return ("attention" if isinstance(layer, AttentionLayer) else "mlp"), layer
    known = ", ".join(name for layer in residual.layers for name in layer.classes)
    raise UserError(f"{path} is a {name}, a layer that secateur cannot read; supported: {known}.")


def _has_weights(module: object, layer: Layer) -> bool:
    """Whether a layer has the weights that its facts name: classes may have one of several."""
    if not isinstance(layer, AttentionLayer) or not isinstance(module, nn.Module):
        return True
    return all(stands_at(module, path) is not None for path in held_in(layer.qkv, "weight"))


def steps_before(stated: Statement, model: nn.Module, branch_id: str) -> list[Step]:
    """The steps before the place of a branch, whether it is still there or was dropped."""
    own = steps_of(stated, model, dropped=True, at=branch_id)
    place = next(step.place for step in own if step.path == branch_id)
    return [step for step in steps_of(stated, model) if step.place < place]


def since_branch(steps: list[Step]) -> list[Step]:
    """The steps after the last branch."""
    last = max((i for i, step in enumerate(steps) if step.is_branch), default=-1)
    return steps[last + 1 :]
