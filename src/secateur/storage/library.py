"""What a host library must tell so that its models can be named, rebuilt and loaded."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import nn

from secateur.registry import Registry

Scalar = bool | int | float | str | None
Argument = Scalar | list["Argument"]
Arguments = Mapping[str, Argument]


class Library(Protocol):
    """One source of models. One file per library.

    `by_name` says whether users can open its models as `PREFIX:NAME`; the others only rebuild.
    """

    title: str
    by_name: bool

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """The model called `name`, with the library's own weights if `pretrained`.

        May use the network. Raises UserError for an unknown name and unobtainable weights.
        """
        ...

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """Names and arguments from which `model` may have been built, likeliest first.

        The caller checks each by building it.
        """
        ...

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """The dense model without trained weights, on the device of the caller's context.

        Both arguments may come from a file that nobody vouches for: only names and arguments
        that cannot reach files, the network or code are accepted. UserError for all others.
        """
        ...


libraries: Registry[Library] = Registry("model library", "secateur.storage.libraries")


def tuples(value: Argument) -> object:
    """JSON's lists as the tuples that constructors expect."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def is_argument(value: object) -> bool:
    """Whether `value` is a JSON scalar or a list of such."""
    if isinstance(value, list):
        return all(is_argument(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
