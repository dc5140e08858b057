"""Timings kept on disk between runs, one JSON file per table, in the user's cache directory.

A file is used again on the same machine, with the same versions of torch and of the other
runtimes, for the same key. One that cannot be read, or is not what was asked for, is measured
again; where nothing can be written, nothing is kept.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from secateur.whole import sweep_all, writing

FORMAT = "1"
LEAST, MOST = 1e-6, 1e8
"""Times in ms outside of which a table is measured again: below one step of the clock, a day."""
PART = 100.0
"""So many times that of the whole model a branch alone never takes; then a table is measured
again."""
PACKAGES = ("torch", "timm", "onnxruntime", "openvino")
DAY = 24 * 3600.0


def cache_dir() -> Path:
    """Where tables are kept: $XDG_CACHE_HOME/secateur, or ~/.cache/secateur."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "secateur"


def recall(key: Mapping[str, str], counts: Sequence[int]) -> list[float] | None:
    """The times kept for `key`, in ms: one, and `counts` more; None if there are none."""
    whole = _whole(key)
    try:
        kept = json.loads(_path(whole).read_text(encoding="utf-8"))
        times = [_time(ms) for ms in kept["ms"]]
        if kept["key"] != whole or len(times) != 1 + sum(counts):
            return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    dense, *parts = times
    return None if any(ms > PART * dense for ms in parts) else times


def _time(ms: object) -> float:
    """A time in ms as JSON has it; ValueError for what no pass of a model can take."""
    if isinstance(ms, bool) or not isinstance(ms, int | float):
        raise ValueError("a time is a number")
    found = float(ms)
    if not LEAST < found < MOST:  # also false for NaN
        raise ValueError("no time that a pass can take")
    return found


def remember(key: Mapping[str, str], times: Sequence[float]) -> None:
    """Keep times for `key`, in ms; the file appears whole or not at all."""
    whole = _whole(key)
    path = _path(whole)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_all(path.parent)
        for left in path.parent.glob("tmp*.part"):
            # Earlier versions wrote, for a moment, to such names.
            if time.time() - left.stat().st_mtime > DAY:
                left.unlink(missing_ok=True)
        with writing(path) as fresh:
            text = json.dumps({"key": whole, "ms": list(times)}, indent=1)
            fresh.write_text(text, encoding="utf-8")


def _path(whole: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return cache_dir() / f"layers-{digest[:20]}.json"


def _whole(key: Mapping[str, str]) -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    machine = (platform.node(), platform.machine(), str(os.cpu_count()))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "format": FORMAT,
        "machine": ", ".join((*machine, device)),
        **{f"version of {package}": number for package, number in versions.items()},
        **key,
    }
