"""An extension of griffe: verbs that take a request are shown as they are called.

griffe reads the source, where such a verb has a request as its last argument; its keywords and the
help of each are those of the function itself, once it is imported.
"""

import inspect
from importlib import import_module
from typing import Any

import griffe

DECORATOR = "secateur.request.takes.takes"


class Requests(griffe.Extension):
    """Parameters and docstring of decorated functions, from the functions themselves."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Called by griffe for every function that it has read."""
        if not any(one.callable_path == DECORATOR for one in func.decorators):
            return
        called = getattr(import_module(func.module.path), func.name)
        func.parameters = griffe.Parameters(*map(_shown, _parameters(called)))
        text = inspect.getdoc(called)
        if text is not None and func.docstring is not None:
            func.docstring.value = text


def _parameters(called: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(called).parameters.values())


def _shown(one: inspect.Parameter) -> griffe.Parameter:
    default = None if one.default is inspect.Parameter.empty else repr(one.default)
    return griffe.Parameter(
        one.name,
        annotation=inspect.formatannotation(one.annotation),
        kind=griffe.ParameterKind(one.kind.description),
        default=default,
    )
