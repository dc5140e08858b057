"""A device without hardware: it holds its data in main memory and refuses to mix with the CPU.

`install()` registers it with torch as `standin`, for the rest of the process. Its tensors say
`standin:0`, compute what the CPU computes, and refuse what CUDA refuses: operands on the CPU (but
for scalars without dimensions), a generator of the CPU, `numpy()`, pinned memory. As on CUDA, a
tensor of the device may be indexed with indices on the CPU; a tensor of the CPU with indices on
the device may not.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

NAME = "standin"
CROSSING = {"aten::copy_", "aten::_copy_from", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
WHOLE = {"aten::cat", "aten::stack", "aten::index_select", "aten::gather", "aten::scatter"}
"""Operators that refuse even scalars of another device."""
FACTORIES = (
    *("empty.memory_format", "empty_strided", "scalar_tensor", "full", "zeros", "ones"),
    *("arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m"),
    *("rand", "rand.generator", "randn", "randn.generator", "randint", "randint.low"),
    *("randperm", "randperm.generator", "tril_indices", "triu_indices"),
)
_kept: list[Any] = []
lacking: set[str] = set()
"""With `double` in it, the device has no double precision, like Apple's."""


class StandIn(Tensor):
    """A tensor of the device around its data on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "StandIn":
        found = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        found.held = held
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"standin({self.held!r})"

    @property
    def data(self) -> Tensor:
        """As that of any tensor; with it, what is held is set."""
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, new: Tensor) -> None:
        Tensor.data.__set__(self, new)
        self.held = new.held

    def untyped_storage(self) -> Any:
        """The memory where the data lies."""
        return self.held.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (self.held.detach(), self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # WHY: without autograd above it, an operator made of others comes here in one piece.
        if _composed(func):
            return func.decompose(*args, **kwargs or {})
        return _run(func, args, kwargs or {})


def _rebuilt(held: Tensor, requires_grad: bool) -> Tensor:
    return StandIn(held).requires_grad_(requires_grad)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Carry an operator out on the data, once its operands are seen to be on one device."""
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    homes = {id(x.held): x for x in tensors if isinstance(x, StandIn)}
    if homes:
        _refuse_mixing(func, args, kwargs, tensors)
    target = kwargs.get("device")
    here = bool(homes) if target is None else torch.device(target).type == NAME
    if here and target is not None and torch.device(target).index:
        raise RuntimeError(f"there is no {target}, only {NAME}:0")
    generator = kwargs.get("generator")
    if here and generator is not None and generator._cdata not in _SEEDED:
        raise RuntimeError(f"{func}: expected a generator of '{NAME}' but found one of 'cpu'")
    if here and kwargs.get("pin_memory"):
        raise RuntimeError("only tensors of the CPU can be pinned")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*map(_bare, args), **{key: _bare(x) for key, x in kwargs.items()})
    if torch.Tag.inplace_view in func.tags:
        _reshape_(func, args, kwargs)

    def home(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(map(home, x))
        if not isinstance(x, Tensor):
            return x
        # WHY: operators in place return what they were given.
        if id(x) in homes:
            return homes[id(x)]
        if x.dtype == torch.float64 and "double" in lacking:
            raise TypeError(f"'{NAME}' has no double precision")
        # WHY: torch gives views of ordinary tensors a version, which inference tensors have not.
        with torch.inference_mode(False):
            return StandIn(x)

    return home(found) if here else found


def _reshape_(func: Any, args: Any, kwargs: Any) -> None:
    """Give a wrapper the shape that its data got in place, as torch does for its own wrappers."""
    before = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for x in values:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _bare(x: Any) -> Any:
    """What is held, also in lists."""
    if isinstance(x, StandIn):
        return x.held
    return type(x)(map(_bare, x)) if isinstance(x, list | tuple) and x else x


def _refuse_mixing(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    name = func._schema.name
    if name in CROSSING:
        return
    if name in INDEXING:
        if not isinstance(args[0], StandIn):
            raise RuntimeError(f"{func}: a tensor of the CPU is indexed with indices on '{NAME}'")
        tensors = [*_tensors(args[2:]), *_tensors(kwargs.values())]
    for x in tensors:
        if not isinstance(x, StandIn) and (x.ndim or name in WHOLE):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found '{NAME}:0' and "
                f"'{x.device}' with shape {tuple(x.shape)}"
            )
    for place in _written(func):
        x = args[place] if place < len(args) else None
        if isinstance(x, Tensor) and not isinstance(x, StandIn):
            raise RuntimeError(f"{func}: a tensor of '{NAME}' cannot be written to one of the CPU")


@cache
def _composed(func: Any) -> bool:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has(func.name(), "CompositeImplicitAutograd"))


@cache
def _written(func: Any) -> tuple[int, ...]:
    """The places of the arguments that an operator writes to."""
    given = func._schema.arguments
    return tuple(i for i, a in enumerate(given) if a.alias_info and a.alias_info.is_write)


class _Seeded(torch.Generator):
    """A generator of the device."""

    def __init__(self) -> None:
        _SEEDED.add(self._cdata)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


class _Makes(type):
    def __instancecheck__(cls, it: object) -> bool:
        return isinstance(it, _GENERATOR)

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return _Seeded() if torch.device(device).type == NAME else _GENERATOR(device)


_GENERATOR = torch.Generator
_SEEDED: set[int] = set()
"""Generators of the device; on their way through torch they lose their class."""


class _Generator(metaclass=_Makes):
    """Stands for `torch.Generator`, which makes none for a device of this kind."""


def _on_cpu_first(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make` from Python data, on the CPU, then moved: torch builds no wrappers itself."""

    @wraps(make)
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, Tensor) or device is None or torch.device(device).type != NAME:
            return make(data, *args, device=device, **kwargs)
        grad = kwargs.pop("requires_grad", False)
        return make(data, *args, device="cpu", **kwargs).to(device).requires_grad_(grad)

    return made


def _new_tensor(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for `Tensor.new_tensor`, whose device and type are those of the tensor."""

    @wraps(make)
    def made(self: Tensor, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        where = torch.device(device) if device is not None else self.device
        if where.type != NAME:
            return make(_bare(self), data, dtype=dtype, device=where)
        return torch.tensor(_bare(data), dtype=dtype or self.dtype, device=where)

    return made


def _refuse_numpy(numpy: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(numpy)
    def given(self: Tensor, *, force: bool = False) -> Any:
        if isinstance(self, StandIn):
            if not force:
                raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy; use .cpu()")
            return self.held.numpy(force=True)
        return numpy(self, force=force)

    return given


@cache
def install() -> torch.device:
    """Register the device, once per process; returns it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    for name in FACTORIES:
        operator, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, operator), overload or "default")

        def factory(*args: Any, func: Any = func, **kwargs: Any) -> Any:
            return _run(func, args, {"device": torch.device(NAME, 0)} | kwargs)

        library.impl(name, factory, "PrivateUse1")
    _kept.append(library)
    torch.tensor = _on_cpu_first(torch.tensor)
    torch.as_tensor = _on_cpu_first(torch.as_tensor)
    Tensor.new_tensor = _new_tensor(Tensor.new_tensor)  # type: ignore[method-assign]
    Tensor.numpy = _refuse_numpy(Tensor.numpy)  # type: ignore[method-assign]
    torch.Generator = _Generator  # type: ignore[assignment, misc]
    # WHY: all work is done at once, and a device in Python cannot say so itself.
    torch.accelerator.synchronize = lambda device=None: None
    listed = Tensor.tolist
    Tensor.tolist = lambda self: listed(_bare(self))  # type: ignore[method-assign]
    return torch.device(NAME, 0)
