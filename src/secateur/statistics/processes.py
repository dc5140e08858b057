"""Several processes that share a pass: each runs every n-th batch, and their sums are added up.

Processes are started by `accelerate launch` (or torchrun), one per device. Each must be given the
same model and the same images; all then hold the same statistics, that of one process to rounding.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.statistics.registry import Sums

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among `count` that share the work."""

    rank: int = 0
    count: int = 1


def here() -> Processes:
    """This process; alone unless a launcher started several.

    Raises UserError where several were started but accelerate is not installed.
    """
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 and not started:
        return Processes()
    state = _state()
    return Processes(rank=state.process_index, count=state.num_processes)


def added_up(
    sums: dict[str, dict[str, Sums]], images: int
) -> tuple[dict[str, dict[str, Sums]], int]:
    """The sums and the number of images of all processes together, the same in each.

    A process that had no batch, for want of as many batches as processes, counts as zeros.
    """
    from accelerate.utils import gather_object, reduce

    device = _state().device
    flat = {
        (kind, owner, name): value
        for kind, by_owner in sums.items()
        for owner, own in by_owner.items()
        for name, value in own.items()
    }
    estimators: dict[Key, tuple[torch.Size, torch.dtype]] = {}
    for other in gather_object([{key: (v.shape, v.dtype) for key, v in flat.items()}]):
        estimators |= other
    total: dict[str, dict[str, Sums]] = {kind: {} for kind in sums}
    for (kind, owner, name), (shape, dtype) in sorted(estimators.items(), key=lambda item: item[0]):
        mine = flat.get((kind, owner, name))
        home = torch.device("cpu") if mine is None else mine.device
        part = torch.zeros(shape, dtype=dtype) if mine is None else mine
        # WHY: GPUs' own collectives take no tensors in main memory, and all collectives add up
        # memory as it lies, so that a transposed view must be laid out like everybody else's.
        whole: Tensor = reduce(part.to(device).contiguous(), "sum")
        total[kind].setdefault(owner, {})[name] = whole.to(home)
    counted: Tensor = reduce(torch.tensor(images, device=device), "sum")
    return total, int(counted)


def _state() -> Any:
    """accelerate's state of this process (untyped), which joins the others when first asked for."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise UserError(
            "several processes were started, but the package 'accelerate', which joins them, is "
            "not installed; run pip install accelerate."
        ) from None
    return PartialState(cpu=not torch.cuda.is_available())
