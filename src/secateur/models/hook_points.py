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


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
"""Where torch keeps what users have registered on a module."""


def keep_hooks_(new: nn.Module, old: nn.Module) -> None:
    """Let a module that takes the place of another have its hooks, and those of its parts.

    Those of secateur, which watch a model for the time of a pass, stay where they are.
    """
    own = dict(new.named_modules())
    for path, module in old.named_modules():
        if path not in own or own[path] is module or not _hooked(module):
            continue
        for name in HOOKS:
            kept = vars(module)[name]
            if isinstance(kept, dict):
                vars(own[path])[name].update(
                    {key: hook for key, hook in kept.items() if not _is_ours(hook)}
                )
            else:
                setattr(own[path], name, kept)


def lost_hooks(dense: nn.Module, smaller: nn.Module) -> list[str]:
    """Paths of modules whose hooks are in `dense` only, since their place is gone."""
    kept = {path for path, module in smaller.named_modules() if _hooked(module)}
    return [p for p, module in dense.named_modules() if _hooked(module) and p not in kept]


def lost_hooks_note(dense: nn.Module, smaller: nn.Module) -> list[str]:
    """A sentence about them, if there are any."""
    lost = lost_hooks(dense, smaller)
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return [f"Hooks are gone with what was removed: {', '.join(lost[:3])}{more}."] if lost else []


def _is_ours(hook: object) -> bool:
    source = getattr(getattr(hook, "func", hook), "__module__", None)
    return str(source).startswith("secateur.")


def _hooked(module: nn.Module) -> bool:
    return any(isinstance(vars(module).get(name), dict) and vars(module)[name] for name in HOOKS)
