"""The Python signature of a verb, from the fields of its request."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_args, overload

from secateur.registry import unknown
from secateur.request.say import own_first, said

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
M = TypeVar("M")
N = TypeVar("N")
T = TypeVar("T")


class Taking(Protocol[Q, R_co]):
    """A decorator of functions whose last argument is a request `R_co`."""

    @overload
    def __call__(
        self, function: Callable[[M, N, R_co], T]
    ) -> Callable[Concatenate[M, N, Q], T]: ...
    @overload
    def __call__(self, function: Callable[[M, R_co], T]) -> Callable[Concatenate[M, Q], T]: ...
    @overload
    def __call__(self, function: Callable[[R_co], T]) -> Callable[Q, T]: ...


def takes(request: Callable[P, R]) -> Taking[P, R]:
    """Let a function be called with the fields of `request` in place of its last argument.

    `takes(PruneRequest)` of `prune(model, images, request)` is called as
    `prune(model, images, "50% macs", preset="energy")`. Signature, type hints and the parameters
    in the docstring follow from the fields. It runs with torch as it starts, see
    `secateur.devices.plain_torch`. TypeError for an argument that is none, with the nearest name.
    """
    make: Any = request

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        first = list(inspect.signature(function).parameters.values())[:-1]
        signature = inspect.Signature([*first, *_parameters(request, _names(function, request))])

        @wraps(function)
        def called(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in signature.parameters:
                    known = list(signature.parameters)
                    raise TypeError(f"{function.__name__}: {unknown('argument', name, known)}")
            try:
                values = signature.bind(*args, **given).arguments
            except TypeError as error:
                raise TypeError(f"{function.__name__}: {error}") from None
            before = [values.pop(one.name) for one in first]
            from secateur.devices import plain_torch  # Here, so that help needs no torch.

            with plain_torch():
                return function(*before, make(**values))

        kinds = {one.name: one.annotation for one in signature.parameters.values()}
        hints = {**kinds, "return": function.__annotations__["return"]}
        called.__annotations__ = hints
        vars(called)["__signature__"] = signature
        called.__doc__ = _described(function.__doc__, request)
        return called

    return decorate


def _parameters(request: Any, names: dict[str, Any]) -> list[inspect.Parameter]:
    """Those of the dataclass's constructor, its own fields before those of its parts."""
    found = []
    for field in own_first(request):
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY
                if field.kw_only
                else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=_plain(field.type, names),
            )
        )
    return sorted(found, key=lambda one: one.kind)


def _names(function: Callable[..., Any], request: Any) -> dict[str, Any]:
    """What annotations in quotes may speak of.

    Requests import torch for type checkers only, but whoever defines a verb has imported it.
    """
    torch = sys.modules.get("torch")
    found = {"torch": torch, "nn": getattr(torch, "nn", None)}
    for part in reversed(request.__mro__):
        found |= vars(sys.modules[part.__module__])
    return found | function.__globals__


def _plain(annotation: Any, names: dict[str, Any]) -> Any:
    if isinstance(annotation, str):
        return eval(annotation, names)
    return annotation if said(annotation) is None else get_args(annotation)[0]


def _described(text: str | None, request: Any) -> str | None:
    """A docstring followed by the help of every field that has some."""
    if text is None:
        return None
    lines = [
        f"    {field.name}: {found[1].help}"
        for field in own_first(request)
        if (found := said(field.type)) is not None
    ]
    return "\n".join([inspect.cleandoc(text), "", "Args:", *lines, ""])
