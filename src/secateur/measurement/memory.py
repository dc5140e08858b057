"""How much memory something needs at its worst moment, over what was in use before."""

import contextlib
import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_memory(call: Callable[[], object], device: str = "cpu") -> int:
    """Call it and return by how many bytes memory in use grew at its peak.

    On a CUDA device that is memory allocated by torch there; otherwise the resident memory of
    this process, with all its threads. Where the system cannot reset its own record of the peak
    (anything but Linux), only growth beyond the highest point since the start of the process
    is seen: a lower bound.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - before)
    # WHY: freed memory that the allocator keeps would be used again unseen.
    return_freed_memory()
    before = _reset_peak()
    call()
    return max(0, _peak() - before)


def return_freed_memory() -> None:
    """Give back to the system what the allocator keeps of freed memory, where it can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _reset_peak() -> int:
    """Forget the peak where the system can; return the bytes from which growth is counted."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return _peak()


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
