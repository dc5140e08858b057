"""The device that a user names: looked up before any work, refused in a sentence."""

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
