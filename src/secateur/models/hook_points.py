"""Places in a running model where a branch can be observed, masked or replaced.

A hook point names a module, whether its input or output carries the quantity, and how to see the
quantity in canonical layout. Views share memory with the tensor they are taken from, so the same
function serves for reading and for writing.

Sites of an attention branch: `input` (B,N,D), `query` and `key` (B,N,H,K), `value` (B,N,H,V),
`context` (B,N,H,V), `update` (B,N,D: what is added to the stream). Of an MLP: `input`, `hidden`
(B,N,F), `update`. Of either: `stream` (B,N,D before the branch).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.models.derived.windows import Windows

View = Callable[[Tensor], Tensor]
Edit = Callable[[Tensor], Tensor | None]


def whole(tensor: Tensor) -> Tensor:
    """The view of a tensor as it is."""
    return tensor


@dataclass(frozen=True, slots=True)
class HookPoint:
    """Where one quantity of a branch passes by.

    What passes in `windows` is seen as tokens of the grid, a copy.
    """

    module: str
    at: Literal["input", "output"]
    view: View = whole
    windows: Windows | None = None

    def see(self, carrier: Tensor) -> Tensor:
        """The quantity in canonical layout."""
        seen = self.view(carrier)
        return seen if self.windows is None else self.windows.in_order(seen)


def attach(model: nn.Module, hook_point: HookPoint, edit: Edit) -> RemovableHandle:
    """Call `edit` with the canonical view each time the quantity passes.

    Where `edit` returns a tensor of the same shape, it replaces the quantity; the rest of the
    carrying tensor stays as it is. Gradients flow through both.
    """
    module = model.get_submodule(hook_point.module)

    def changed(carrier: Tensor) -> Tensor | None:
        new = edit(hook_point.see(carrier))
        if new is None:
            return None
        if (windows := hook_point.windows) is not None:
            return windows.split(new.unflatten(1, windows.grid)).reshape(carrier.shape)
        if hook_point.view is whole:
            return new
        copy = carrier.clone()
        hook_point.view(copy).copy_(new)
        return copy

    if hook_point.at == "output":
        return module.register_forward_hook(lambda _module, _args, output: changed(output))

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        new = changed(args[0])
        return None if new is None else (new, *args[1:])

    return module.register_forward_pre_hook(before)


@contextmanager
def attached(model: nn.Module, edits: list[tuple[HookPoint, Edit]]) -> Iterator[None]:
    """Attach several edits for the length of a `with` block."""
    handles = [attach(model, hook_point, edit) for hook_point, edit in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch_gradient(
    model: nn.Module, hook_point: HookPoint, see: Callable[[Tensor, Tensor], None]
) -> RemovableHandle:
    """Call `see(quantity, gradient)` in each backward pass, both in canonical view, detached."""
    module = model.get_submodule(hook_point.module)

    def register(carrier: Tensor) -> None:
        if carrier.requires_grad:
            kept = carrier.detach()
            carrier.register_hook(lambda grad: see(hook_point.see(kept), hook_point.see(grad)))

    if hook_point.at == "output":
        return module.register_forward_hook(lambda _module, _args, output: register(output))
    return module.register_forward_pre_hook(lambda _module, args: register(args[0]))
