"""The device that a user names: looked up before any work, refused in a sentence; torch's modes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from secateur.errors import UserError


def usable_device(name: torch.device | str) -> torch.device:
    """The device called `name`, such as 'cpu', 'cuda', 'cuda:1' or 'mps'.

    UserError, with the devices that are there, where torch does not know it or cannot use it.
    """
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"device '{name}' cannot be used: '{name}' is no device; write for example cpu, cuda, "
            "cuda:1 or mps."
        ) from error
    try:
        torch.empty(1, device=found)
    # WHY all of these: each backend that is missing complains in its own way.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"device '{name}' is not available here; choose from what is: "
            f"{', '.join(present_devices())}."
        ) from error
    return found


def present_devices() -> list[str]:
    """The devices that torch can use on this machine, the CPU first."""
    found = ["cpu"]
    if torch.accelerator.is_available() and (kind := torch.accelerator.current_accelerator()):
        count = torch.accelerator.device_count()
        found += [kind.type] if count < 2 else [f"{kind.type}:{place}" for place in range(count)]
    return found


def require_double(device: torch.device, what: str) -> None:
    """UserError where a device has no double precision, in which `what` adds up its sums."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"device '{device}' has no double precision, which {what} needs; do it on the CPU."
        ) from error


def same_device(one: torch.device | str, other: torch.device | str) -> bool:
    """Whether both are one device; without a number, any of its type."""
    a, b = torch.device(one), torch.device(other)
    return a.type == b.type and (a.index == b.index or None in (a.index, b.index))


@contextmanager
def plain_torch() -> Iterator[None]:
    """torch as it starts, whatever the caller has set around: every verb works alike.

    Gradients can be taken, tensors made without a device or type are float32 on the CPU, and
    operations run in the type of their tensors. All is set back at the end.
    """
    kind = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if kind is None else ["cpu", kind.type]
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for name in kinds:
            if torch.amp.is_autocast_available(name) and torch.is_autocast_enabled(name):
                stack.enter_context(torch.autocast(name, enabled=False))
        # WHY only then: such a context runs Python at every operation.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(dtype)
