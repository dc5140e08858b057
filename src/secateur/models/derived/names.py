"""Look up the names that a statement gives, in a model, a block or a layer."""

from torch import nn

from secateur.errors import UserError
from secateur.models.statement import Statement


def member(owner: nn.Module, path: str) -> object:
    """What stands under a stated name; UserError when nothing does, unless it ends in "?"."""
    at: object = owner
    for name in path.removesuffix("?").split("."):
        if isinstance(at, nn.Identity) or at is None:
            return None
        if not hasattr(at, name):
            if path.endswith("?"):
                return None
            raise UserError(
                f"'{path}' is stated, but a {type(owner).__name__} has nothing under that name"
            )
        at = getattr(at, name)
    return at


def optional(owner: nn.Module, path: str | None) -> nn.Module | None:
    """The module at a path; None where there is none, or an Identity."""
    found = stands_at(owner, path)
    return found if isinstance(found, nn.Module) and not isinstance(found, nn.Identity) else None


def parameter(owner: nn.Module, path: str | None) -> nn.Parameter | None:
    """The parameter at a path; None where there is none."""
    found = stands_at(owner, path)
    return found if isinstance(found, nn.Parameter) else None


def linear(module: nn.Module, path: str) -> nn.Linear | nn.Conv2d:
    """A linear layer or 1 × 1 convolution; UserError for other kinds, say, quantised."""
    found = stands_at(module, path)
    if isinstance(found, nn.Linear) or (
        isinstance(found, nn.Conv2d) and found.kernel_size == (1, 1)
    ):
        return found
    raise UserError(
        f"'{path}' of a {type(module).__name__} is a {type(found).__name__}, not a Linear; "
        "prune before quantising, adapting or otherwise wrapping the layers."
    )


def classifiers(stated: Statement, model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that read the last stream, by path."""
    found = {path.removesuffix("?"): optional(model, path) for path in stated.tail.classifiers}
    return {path: head for path, head in found.items() if isinstance(head, nn.Linear)}


def stands_at(owner: nn.Module, path: str | None) -> object:
    """What stands under a name; None where nothing does."""
    names = [] if path is None else path.removesuffix("?").split(".")
    at: object = owner if names else None
    for name in names:
        at = getattr(at, name, None)
    return at
