"""What is left of a block, and blocks between streams of tokens whatever layout their host has.

Legend: B batch, N tokens, D residual width, H and W rows and columns of a grid.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from torch import Tensor, nn

from secateur.models.derived.scripting import write_steps_
from secateur.models.derived.windows import Windows
from secateur.models.statement import Residual


class PartialBlock(nn.Module):
    """Some of the residual steps of a block, with the modules that they are made of.

    `residuals` are all steps of the host's block; modules keep their names. Works on the host's own
    layout, tokens or grid, and takes the arguments that the host gives a block. `windows` are those
    of the block's layers, by path.
    """

    def __init__(
        self, block: nn.Module, residuals: tuple[Residual, ...], kept: Collection[str]
    ) -> None:
        super().__init__()
        self.residuals: Final = residuals
        for residual in self.present(kept):
            for name in residual.members:
                member = getattr(block, name, None)
                if isinstance(member, nn.Parameter):
                    self.register_parameter(name, member)
                elif isinstance(member, nn.Module):
                    self.add_module(name, member)
                else:
                    self.register_parameter(name, None)
        self.steps: Final = self.present(kept)
        # WHY by path: statements compare by value, which torch.compile cannot follow.
        self.marks: Final = {one.path: f"update_{i}" for i, one in enumerate(residuals)}
        found = {residual.path: windows_of(residual, block) for residual in self.steps}
        self.windows = {path: own for path, own in found.items() if own is not None}
        for residual in self.steps:
            self.add_module(self.passed(residual), nn.Identity())
        self.training = block.training

    def passed(self, residual: Residual) -> str:
        """The name of a module that does nothing but be passed by the update of a step."""
        return self.marks[residual.path]

    def present(self, kept: Collection[str]) -> tuple[Residual, ...]:
        """The steps at these paths."""
        return tuple(residual for residual in self.residuals if residual.path in kept)

    def forward(self, *args: Any, **given: Any) -> Tensor:
        """Take the stream through the steps that are left."""
        x, given = self.bound(args, given)
        for residual in self.steps:
            x = x + self._update(residual, x, given)
        return x

    def bound(self, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The stream, and what the host gives the block beside it, by name."""
        calls = [residual.layers[0].call for residual in self.residuals]
        return max(calls, key=lambda call: len(call.by_position)).bound(args, given)

    def _update(self, residual: Residual, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        norm = None if residual.norm is None else self.get_submodule(residual.norm)
        read = x if norm is None or residual.norm_behind else norm(x)
        call = residual.layers[0].call
        wanted = (call.mask, *call.takes)
        passed = {name: value for name, value in given.items() if name in wanted}
        if (windows := self.windows.get(residual.path)) is not None:
            windows = windows.on((read.shape[1], read.shape[2]))
            read = windows.split(read)
            read = read.unflatten(1, windows.size) if call.grid else read
            if call.mask is not None and (mask := windows.mask(read)) is not None:
                passed[call.mask] = mask
        y = self._layer(residual, read, given, passed)
        y = y[0] if call.pair else y
        y = y if windows is None or residual.inside else windows.join(y)
        y = norm(y) if norm is not None and residual.norm_behind else y
        if residual.scale is not None:
            owner, _, _ = residual.scale.rpartition(".")
            if owner:
                y = self.get_submodule(owner)(y)
            elif (scale := getattr(self, residual.scale, None)) is not None:
                y = y * scale
        y = y if residual.drop is None else self.get_submodule(residual.drop)(y)
        y = windows.join(y) if windows is not None and residual.inside else y
        update: Tensor = self.get_submodule(self.passed(residual))(y)
        return update

    def _layer(
        self, residual: Residual, read: Tensor, given: Mapping[str, Any], passed: dict[str, Any]
    ) -> Any:
        """What the layer of a step gives back, called as its host calls it."""
        call = residual.layers[0].call
        return self.get_submodule(residual.path)(*[read] * call.times, **call.fixed, **passed)

    def __prepare_scriptable__(self) -> nn.Module:
        """For torch.jit.script."""
        passed = {residual.path: self.passed(residual) for residual in self.steps}
        return self if self.windows else write_steps_(self, self.residuals, self.steps, passed)


def windows_of(residual: Residual, block: nn.Module) -> Windows | None:
    """The windows of a step of a host's block, or of what is left of it."""
    if isinstance(block, PartialBlock):
        return block.windows.get(residual.path)
    return None if residual.windows is None else residual.windows(block)


class OnTokens(nn.Module):
    """A block or other module between streams of tokens, whatever its host gives it beside them.

    `given()` are its further arguments; with `grid` it works on one of so many rows and columns,
    whose channels are `last` or second.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        grid: tuple[int, int] | None = None,
        last: bool = False,
        given: Callable[[], Mapping[str, object]] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.grid, self.last, self.given = inner, grid, last, given

    def forward(self, x_BND: Tensor) -> Tensor:
        """From (B, N, D) to (B, N', D'); modules may change the number of tokens and the width."""
        x = x_BND
        if self.grid is not None:
            x = x if self.last else x.transpose(1, 2)
            x = x.unflatten(1 if self.last else 2, self.grid)
        out: Tensor = self.inner(x) if self.given is None else self.inner(x, **self.given())
        return out if self.grid is None else as_rows(out) if self.last else as_tokens(out)


def as_tokens(grid_BDHW: Tensor) -> Tensor:
    """The view (B, N, D) of a grid; shares its memory."""
    return grid_BDHW.flatten(2).transpose(1, 2)


def as_rows(grid_BHWD: Tensor) -> Tensor:
    """The view (B, N, D) of a grid with its channels last, or of tokens; shares its memory."""
    return grid_BHWD.view(grid_BHWD.shape[0], -1, grid_BHWD.shape[-1])
