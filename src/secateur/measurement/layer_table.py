"""What single branches cost on this machine in milliseconds, for many shapes, and what a model so
made up costs.

Each kind of branch that differs is timed alone on a grid of sizes, taking turns with the dense
model; branches of equal geometry share one grid. Between the sizes of a grid times are linear,
and no smaller branch is slower (a table of timings as in ZipLM, arXiv 2302.04089, section 3.2).

Legend: B batch, N tokens, D residual width.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from torch import nn

from secateur.allocation.costs import CostOf, additive_cost
from secateur.allocation.types import GROUPS_OF, Key
from secateur.measurement.alone import Alone, resized
from secateur.measurement.latency import bound, take_turns, using_threads, waiting
from secateur.measurement.modes import example_images
from secateur.measurement.runtimes import require
from secateur.measurement.table_cache import recall, remember
from secateur.models.caches import copy_of, evaluating
from secateur.models.host import Host
from secateur.models.types import Anatomy, AttentionShape, Branch, GroupName, MlpShape, Shape
from secateur.progress import Progress

ROUNDS = 15
"""Least rounds in which all entries of a table and the dense model are timed once each."""
SECONDS = 10.0
"""Rounds go on for this long if they are many."""
POINTS: Mapping[GroupName, int] = {"heads": 3, "qk": 3, "vo": 3, "hidden": 6}
"""Sizes of each group at which a branch is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how latency counts: a runtime on a device, images at a time, CPU threads."""

    runtime: str = "eager"
    device: str = "cpu"
    batch_size: int = 1
    threads: int = 1

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return f"{self.runtime} on {self.device}, batch {self.batch_size}{threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The sizes at which branches like `branch` are timed, by group; what is left out is dense."""

    branch: Branch
    axes: tuple[tuple[int, ...], ...]

    @property
    def shapes(self) -> list[Shape]:
        """All combinations of sizes, the last group changing fastest."""
        return [_shape(self.branch, sizes) for sizes in itertools.product(*self.axes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """Milliseconds of every shape on each grid, and of the dense model.

    `kinds` says which grid prices a branch; `recalled`, whether the times are from an earlier run;
    `tailed_ms` is the time of the dense model with the exact tail, where branches are priced so.
    """

    kinds: Mapping[str, int]
    grids: tuple[Grid, ...]
    ms: tuple[tuple[float, ...], ...]
    dense_ms: float
    tailed_ms: float | None = None
    recalled: bool = field(default=False, compare=False)


def layer_table(
    host: Host,
    setting: Setting,
    sizes: Mapping[Key, tuple[int, ...]],
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    fresh: bool = False,
    progress: Progress | None = None,
) -> LayerTable:
    """Time the branches of a model in the shapes that `sizes` allows, or recall it from disk,
    unless it must be `fresh`.

    Raises UserError when the runtime is unknown or not installed. See `table_cache` for where
    tables are kept and when one is measured again.
    """
    require(setting.runtime, setting.device)
    kinds, grids = _grids(host, sizes)
    key = _key(host, setting, kinds, grids)
    counts = [len(grid.shapes) for grid in grids]
    tailed = int(host.anatomy.as_written is not None)
    times = None if fresh else recall(key, [tailed, *counts])
    recalled = times is not None
    if times is None:
        times = _measure(host, setting, grids, rounds, seconds, progress)
        remember(key, times)
    dense_ms, *rest = times
    tailed_ms = rest.pop(0) if tailed else None
    ms = []
    for count in counts:
        ms.append(tuple(rest[:count]))
        rest = rest[count:]
    return LayerTable(
        kinds=kinds,
        grids=grids,
        ms=tuple(ms),
        dense_ms=dense_ms,
        tailed_ms=tailed_ms,
        recalled=recalled,
    )


def latency_cost(anatomy: Anatomy, table: LayerTable) -> CostOf:
    """Predicted milliseconds of the model as a function of sizes.

    Embedding and head get what the branches leave of the dense model's time; where they leave
    nothing, all branches are scaled down, so that the dense model costs what was measured. All
    this is with the exact tail where the anatomy is priced so.
    """
    curves = [_curve(grid, ms) for grid, ms in zip(table.grids, table.ms, strict=True)]

    def alone(branch: Branch, shape: Shape | None) -> float:
        if shape is None:
            return 0.0
        groups = GROUPS_OF[branch.kind]
        return curves[table.kinds[branch.id]](tuple(shape.size(group) for group in groups))

    inside = sum(alone(branch, branch.shape) for branch in anatomy.branches)
    whole = table.dense_ms if table.tailed_ms is None else table.tailed_ms
    scale = min(1.0, whole / max(inside, 1e-12))
    ends = max(whole - inside, 0.0)
    return additive_cost(anatomy, "ms", ends, lambda branch, shape: scale * alone(branch, shape))


def _curve(grid: Grid, ms: tuple[float, ...]) -> Callable[[tuple[int, ...]], float]:
    """Milliseconds at any sizes, linear between those of the grid and constant outside."""
    table = _monotone(np.array(ms).reshape([len(axis) for axis in grid.axes]))
    free = [i for i, axis in enumerate(grid.axes) if len(axis) > 1]
    if not free:
        return lambda _: float(table.item())
    axes = [np.array(grid.axes[i], dtype=float) for i in free]
    linear = RegularGridInterpolator(axes, table.squeeze())

    @cache
    def at(sizes: tuple[int, ...]) -> float:
        inside = [np.clip(sizes[i], x[0], x[-1]) for i, x in zip(free, axes, strict=True)]
        return float(linear(inside)[0])

    return at


def _monotone(table: np.ndarray) -> np.ndarray:
    """Times that never fall along any axis: the mean of the tightest bounds above and below."""
    above, below = table, table
    for axis in range(table.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    mean: np.ndarray = (above + below) / 2
    return mean


def _grids(
    host: Host, sizes: Mapping[Key, tuple[int, ...]]
) -> tuple[dict[str, int], tuple[Grid, ...]]:
    """One grid per geometry, over all sizes that some branch of this geometry may take."""
    alike: dict[str, list[Branch]] = {}
    for branch in host.anatomy.branches:
        alike.setdefault(_geometry(host.model, branch), []).append(branch)
    kinds = {branch.id: i for i, own in enumerate(alike.values()) for branch in own}
    grids = []
    for own in alike.values():
        axes = []
        for group in GROUPS_OF[own[0].kind]:
            present = {own[0].shape.size(group)}
            allowed = present.union(*(sizes.get((branch.id, group), ()) for branch in own))
            axes.append(_points(sorted(allowed), POINTS[group]))
        grids.append(Grid(branch=own[0], axes=tuple(axes)))
    return kinds, tuple(grids)


def _points(allowed: list[int], count: int) -> tuple[int, ...]:
    """About `count` of the allowed sizes, evenly spread, the first and the last among them."""
    wanted = np.linspace(allowed[0], allowed[-1], count)
    return tuple(sorted({min(allowed, key=lambda size: abs(size - want)) for want in wanted}))


def _geometry(model: nn.Module, branch: Branch) -> str:
    """All that decides how long a branch takes, as text."""
    rates = [branch.fixed, branch.per_head, branch.per_qk, branch.per_vo, branch.per_hidden]
    shape, module = branch.shape, model.get_submodule(branch.id)
    tail = "" if branch.rows is None else f" the first {branch.rows}"
    return f"{branch.width} {branch.tokens} {shape} {rates} {module}{tail}"


def _key(
    host: Host, setting: Setting, kinds: Mapping[str, int], grids: tuple[Grid, ...]
) -> dict[str, str]:
    """What a table on disk must agree in to be used again, apart from the machine."""
    model, anatomy = host.model, host.anatomy
    return {
        "setting": repr(setting),
        "dtype": str({p.dtype for p in model.parameters()}),
        "geometries": repr([(_geometry(model, grid.branch), grid.axes) for grid in grids]),
        "branches": repr(list(kinds.values())),
        "ends": repr((type(model).__name__, anatomy.input_size, anatomy.ends)),
    }


def _measure(
    host: Host,
    setting: Setting,
    grids: tuple[Grid, ...],
    rounds: int,
    seconds: float,
    progress: Progress | None,
) -> list[float]:
    """Milliseconds of the dense model, with the tail if that counts, then of all shapes."""
    model = host.model
    entries = [(grid.branch, shape) for grid in grids for shape in grid.shapes]
    prepare = require(setting.runtime, setting.device).prepare
    calls: dict[str, Callable[[], object]] = {}
    with (
        TemporaryDirectory(prefix="secateur-") as scratch,
        using_threads(setting.threads),
        evaluating(model),
    ):
        images_BCHW = example_images(model, host.anatomy.input_size, setting.batch_size)
        run = prepare(model, images_BCHW, _folder(scratch, "dense"))
        calls["dense"] = bound(run, images_BCHW)
        if host.anatomy.as_written is not None:
            host.family.put_tail_(whole := copy_of(model))
            run = prepare(whole, images_BCHW, _folder(scratch, "tailed"))
            calls["tailed"] = bound(run, images_BCHW)
        for number, (branch, shape) in enumerate(entries):
            arrive = branch.tokens if branch.kind == "attention" else branch.computed
            size = (1, arrive, branch.width)
            stream_B1ND = example_images(model, size, setting.batch_size)
            alone = Alone(resized(host, branch, shape))
            run = prepare(alone, stream_B1ND, _folder(scratch, str(number)))
            calls[f"{branch.id} {shape}"] = bound(run, stream_B1ND)
            if progress is not None:
                progress("time", number + 1, len(entries))
        times = take_turns(calls, rounds, seconds, waiting(setting.device))
    # WHY: what else the machine does only ever adds to a time, and meets a long run, that of the
    # dense model, more often than a short one; of many interleaved runs the least is steadiest.
    return [min(own) / 1e6 for own in times.values()]


def _shape(branch: Branch, sizes: tuple[int, ...]) -> Shape:
    named = dict(zip(GROUPS_OF[branch.kind], sizes, strict=True))
    if branch.kind == "attention":
        return AttentionShape(heads=named["heads"], qk=named["qk"], vo=named["vo"])
    return MlpShape(hidden=named["hidden"])


def _folder(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder
