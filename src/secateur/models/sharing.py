"""Weights and modules that a model uses at more than one place.

A cut gives a branch new tensors, so weights that two places shared would end as two: more than any
prediction counts. Hooks on a module that two branches use cannot tell one use from the other.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.caches import copy_of
from secateur.models.host import Host
from secateur.models.types import Anatomy, GroupName


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Two names of one parameter, or of two tensors that overlap in memory."""

    first: str
    second: str


def shared_weights(model: nn.Module) -> Iterator[Shared]:
    """Every pair of neighbouring places that hold the same weights.

    Found by identity and by memory: views of one tensor count where they overlap, so parameters
    that lie side by side in one buffer do not. Tensors without memory of their own (on the meta
    device, or of a class that hides it) are compared by identity alone.
    """
    by_memory: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
    for name, tensor in _places(model):
        by_memory.setdefault(_memory(tensor), []).append((name, tensor))
    for places in by_memory.values():
        if len(places) > 1:
            yield from _overlapping(places)


def refuse_shared(host: Host, groups: tuple[GroupName, ...]) -> None:
    """UserError naming two places that share what a cut of `groups` would take apart.

    Classifiers outside the blocks may share weights while the stream keeps its width and their
    parameters are predicted as they are counted.
    """
    model, anatomy = host.model, host.anatomy
    exact = anatomy.cost().params == sum(p.numel() for p in model.parameters())
    for pair in shared_weights(model):
        if "width" in groups or not exact or not _untouched(host, pair):
            raise UserError(_sentence(model, pair))
    seen: dict[int, tuple[str, str]] = {}
    for branch in anatomy.branches:
        for hook_point in host.hook_points(branch).values():
            module = model.get_submodule(hook_point.module)
            owner, path = seen.setdefault(id(module), (branch.id, hook_point.module))
            if owner != branch.id and path != hook_point.module:
                raise UserError(
                    f"{path} and {hook_point.module} are one {type(module).__name__}, so what "
                    "passes at one place cannot be told from the other; replace that at "
                    f"{hook_point.module} by a deep copy (copy.deepcopy) first."
                )


def separated(model: nn.Module) -> nn.Module:
    """A copy with the same outputs in which every place has a module and weights of its own."""
    apart = copy_of(model)
    known: set[int] = set()

    def walk(module: nn.Module) -> None:
        known.add(id(module))
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in known:
                module._parameters[name] = copy.deepcopy(parameter)
            known.add(id(module._parameters[name]))
        for name, child in list(module._modules.items()):
            if child is None:
                continue
            own = copy.deepcopy(child) if id(child) in known else child
            module._modules[name] = own
            walk(own)

    walk(apart)
    return apart


def has_shared(model: nn.Module) -> bool:
    """Whether a parameter, or a module that is more than a container of others, is used twice."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    return len(names) > sum(1 for _ in model.modules()) or any(shared_weights(model))


def parameters_outside(host: Host) -> int:
    """Parameters that no branch or block holds, each counted once."""
    inside = {
        id(parameter)
        for name, parameter in host.model.named_parameters(remove_duplicate=False)
        if _in_block(host.anatomy, name)
    }
    return sum(p.numel() for p in host.model.parameters() if id(p) not in inside)


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters at every place where they are used, and plain tensors in their stead."""
    for path, module in model.named_modules(remove_duplicate=False):
        own: dict[str, object] = {**module._parameters, **vars(module)}
        for name, value in own.items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}" if path else name, value


def _memory(tensor: Tensor) -> tuple[str, int]:
    """What tensors of the same memory have in common."""
    try:
        pointer = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError, AttributeError):
        pointer = 0
    return (str(tensor.device), pointer) if pointer else ("alone", id(tensor))


def _overlapping(places: list[tuple[str, Tensor]]) -> Iterator[Shared]:
    """Pairs, in the order of the model, of tensors in one memory that overlap."""
    order = {name: number for number, (name, _) in enumerate(places)}
    open_: list[tuple[str, Tensor]] = []
    for name, tensor in sorted(places, key=lambda place: _span(place[1])[0]):
        begin = _span(tensor)[0]
        open_ = [place for place in open_ if _span(place[1])[1] > begin]
        for other, earlier in open_:
            if _overlap(earlier, tensor):
                first, second = sorted((other, name), key=lambda one: order[one])
                yield Shared(first=first, second=second)
                break
        open_.append((name, tensor))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor in its memory, and the one behind the last."""
    if tensor.layout != torch.strided:
        return 0, 1
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    if tensor.numel() == 0:
        return begin, begin
    reach = sum(int((n - 1) * step) for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (reach + 1) * size


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one memory, whose spans overlap, have an element in common."""
    if first is second:
        return True
    if second.numel() == 0 or first.numel() == 0:
        return False
    if _dense(first) and _dense(second):
        return True
    marks = torch.zeros(max(_span(first)[1], _span(second)[1]), dtype=torch.bool)
    _bytes_of(first, marks).fill_(True)
    return bool(_bytes_of(second, marks).any())


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its span, in whatever order of its dimensions."""
    begin, end = _span(tensor)
    steps = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    exact = all(step * n <= after for (step, n), (after, _) in pairwise(steps))
    return exact and end - begin == tensor.numel() * tensor.element_size()


def _bytes_of(tensor: Tensor, marks: Tensor) -> Tensor:
    """The marks of the first byte of every element."""
    size = tensor.element_size()
    shape = [1 if step == 0 else n for n, step in zip(tensor.shape, tensor.stride(), strict=True)]
    steps = [step * size for step in tensor.stride()]
    return torch.as_strided(marks, shape, steps, tensor.storage_offset() * size)


def _untouched(host: Host, pair: Shared) -> bool:
    """Whether both places are classifiers behind or beside the blocks, which no cut rewrites."""
    owners = [name.rpartition(".")[0] for name in (pair.first, pair.second)]
    return all(
        not _in_block(host.anatomy, owner)
        and isinstance(host.model.get_submodule(owner), nn.Linear)
        for owner in owners
    )


def _in_block(anatomy: Anatomy, name: str) -> bool:
    """Whether a module path or parameter name lies in a block or branch."""
    paths = [*(b.id for b in anatomy.blocks), *(b.id for b in anatomy.branches)]
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def _sentence(model: nn.Module, pair: Shared) -> str:
    """Both places, as far up as they are one module, and how to take them apart."""
    first, second = pair.first, pair.second
    first_up, second_up = first.rpartition(".")[0], second.rpartition(".")[0]
    whole = False
    while first_up and second_up and first_up != second_up:
        if model.get_submodule(first_up) is not model.get_submodule(second_up):
            break
        first, second, whole = first_up, second_up, True
        first_up, second_up = first.rpartition(".")[0], second.rpartition(".")[0]
    how = "a deep copy (copy.deepcopy)" if whole else "a copy (torch.nn.Parameter of its clone)"
    return (
        f"{first} and {second} share weights, so a cut at one place would change the other, or "
        f"leave two where the budget counts one; replace that at {second} by {how} first, so that "
        "each place has weights of its own."
    )
