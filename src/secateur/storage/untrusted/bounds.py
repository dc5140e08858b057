"""Sizes that a file claims, held against the tensors that are really there, before any is used."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from secateur.errors import UserError, short
from secateur.models.types import Anatomy
from secateur.storage.library import Argument, Arguments

LARGEST_NUMBER = 2**24
"""Of any argument of a constructor: classes, channels, pixels."""
MOST_ITEMS = 1024
"""Items of all lists among the arguments."""
COUNTS = ("depth", "layers", "blocks", "stages")
"""Parts of the names of arguments that say how often something is repeated."""
MODULES = (64, 4096)
"""Modules of a dense model: per branch, and beside its branches."""
PIXELS = 2**24
"""Numbers of one input image, all channels."""
TOKENS = 2**14
"""Tokens of a model without a tensor as long as that."""
SMALL, TIMES = 2**27, 16
"""Numbers of a dense model that may be built to compute buffers: as many, or so many times those
of the file."""

UNBUILDABLE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError,
    OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""Raised by constructors of libraries for arguments that they do not take."""


def check_arguments(arguments: Arguments, branches: int) -> None:
    """UserError for arguments of a dense model that has no more than so many branches."""
    for key, value in arguments.items():
        numbers = list(_numbers(value))
        if len(numbers) > MOST_ITEMS or any(abs(n) > LARGEST_NUMBER for n in numbers):
            raise UserError(f"argument '{key}' of the base model is out of bounds: {short(value)}.")
        if any(part in key for part in COUNTS) and sum(map(abs, numbers)) > max(branches, 1):
            raise UserError(
                f"argument '{key}' of the base model asks for {short(value)}, but the file has the "
                f"shapes of {branches} branches."
            )


def check_types(arguments: Arguments, parameters: Mapping[str, Any]) -> None:
    """UserError where a truth value stands for a number, or the other way round.

    `parameters` are those of constructors, as `inspect.signature` gives them.
    """
    for key, value in arguments.items():
        known = parameters.get(key)
        if known is None or isinstance(value, str | None):
            continue
        says_bool = isinstance(known.default, bool) or "bool" in str(known.annotation)
        says_number = isinstance(known.default, int | float) and not isinstance(known.default, bool)
        is_bool = any(isinstance(item, bool) for item in _flat(value))
        if (is_bool and not says_bool) or (not is_bool and says_bool and not says_number):
            wanted = "true or false" if says_bool else "no truth value"
            raise UserError(f"argument '{key}' of the base model is {short(value)}, not {wanted}.")


@contextmanager
def few_modules(branches: int) -> Iterator[None]:
    """While active, UserError as soon as more modules are made than so many branches have."""
    most, made = MODULES[0] * branches + MODULES[1], 0

    def count(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise UserError(f"the base model has more modules than {branches} branches can have.")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_input(
    claimed: tuple[int, int, int], anatomy: Anatomy, tensors: Mapping[str, Tensor]
) -> None:
    """UserError unless an input is that of the model, and its tokens show in some tensor."""
    channels, height, width = claimed
    if claimed != anatomy.input_size:
        raise UserError(
            f"the input size of its fingerprint is {claimed}, that of the model "
            f"{anatomy.input_size}."
        )
    if channels * height * width > PIXELS:
        raise UserError(f"an input of size {claimed} is larger than any model needs.")
    tokens = max([anatomy.tokens, *(branch.tokens for branch in anatomy.branches)])
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if tokens > max(TOKENS, longest):
        raise UserError(f"the model has {tokens} tokens, for which the file has no tensor.")


def check_dense(dense: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """UserError for a dense model, on the meta device, that is out of proportion to a file."""
    elements = sum(t.numel() for t in (*dense.parameters(), *dense.buffers()))
    if elements > max(SMALL, TIMES * sum(tensor.numel() for tensor in tensors.values())):
        raise UserError(f"the base model has {elements} parameters, too many for this file.")


def _flat(value: Argument) -> Iterator[Argument]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _numbers(value: Argument) -> Iterator[int | float]:
    return (item for item in _flat(value) if isinstance(item, int | float))
