"""Build modules on the meta device without drawing initial values that do not exist there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLS = {name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")} | {
    "add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "sub_", "zero_",
}  # fmt: skip
"""Functions that change the values of their first argument and nothing else about it."""


class Unfilled(TorchFunctionMode):
    """While active, functions that only fill meta tensors return them at once.

    torch emulates such functions in Python, which takes seconds for a large model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Skip `func` or call it."""
        first = args[0] if args else None
        named = getattr(func, "__name__", "")
        if named in FILLS and isinstance(first, Tensor) and first.is_meta:
            return first
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """New modules live on the meta device, where they cost no memory and hold no values."""
    with torch.device("meta"), Unfilled():
        yield
