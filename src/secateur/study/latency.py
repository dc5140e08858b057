"""Latency of every shape that a study's cells took on, dense and pruned in turns.

Layers of equal sizes take equal time wherever they stand, so cells that differ only in which
layers were cut share a measurement.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from secateur.allocation.types import Plan, Units
from secateur.measurement.latency import bench
from secateur.models.types import AttentionShape, Branch, GroupName, MlpShape, Shape, Shapes
from secateur.study.bench import StudyHost
from secateur.study.spec import LatencySpec
from secateur.study.store import OK, Store
from secateur.surgery.cut import cut_

ShapesJson = Mapping[str, list[int] | None]
MIN_RUNS = 10


def measure_latency(
    store: Store,
    hosts: Mapping[str, StudyHost],
    spec: LatencySpec,
    on_step: Callable[[int, int], None],
) -> None:
    """Measure every shape of the finished cells that was not measured yet."""
    known = store.latency()
    todo: dict[tuple[str, str], ShapesJson] = {}
    for row in store.cells():
        if row.outcome.status == OK and row.cell.model in hosts:
            key = (row.cell.model, row.outcome.result["signature"])
            if key not in known:
                todo.setdefault(key, row.outcome.result["shapes"])
    for number, ((model, name), shapes) in enumerate(todo.items(), start=1):
        store.add_latency(model, name, _measure(hosts[model], shapes, spec))
        on_step(number, len(todo))


def _measure(host: StudyHost, shapes: ShapesJson, spec: LatencySpec) -> dict[str, Any]:
    rows = bench(
        {"dense": host.model, "pruned": shaped(host, shapes)},
        host.anatomy.input_size,
        runtimes=(spec.runtime,),
        batch_sizes=(spec.batch,),
        min_runs=MIN_RUNS,
        max_seconds=spec.seconds,
        threads=host.study.threads,
        device=host.study.device,
        clock=spec.clock,
    )
    dense, pruned = rows
    return {
        "dense_ms": dense.latency.median_ms,
        "pruned_ms": pruned.latency.median_ms,
        "iqr_ms": pruned.latency.iqr_ms,
        "ratio": pruned.ratio,
        "runs": pruned.latency.runs,
        "runtime": spec.runtime,
        "batch": spec.batch,
        "threads": host.study.threads,
        "clock": spec.clock,
    }


def shaped(host: StudyHost, shapes: ShapesJson) -> nn.Module:
    """A model of these shapes: the first units of every group, which are as fast as any."""
    model = copy.deepcopy(host.model)
    wanted: Shapes = {}
    units: dict[str, dict[GroupName, Units]] = {}
    for branch in host.anatomy.branches:
        shape = _shape(branch, shapes[branch.id])
        wanted[branch.id] = shape
        if shape is not None and shape != branch.shape:
            units[branch.id] = _first_units(branch, shape)
    cut_(model, Plan(shapes=wanted, units=units), None, "none")
    return model.eval()


def _shape(branch: Branch, sizes: list[int] | None) -> Shape | None:
    if sizes is None:
        return None
    if branch.kind == "mlp":
        return MlpShape(hidden=sizes[0])
    heads, qk, vo = sizes
    return AttentionShape(heads=heads, qk=qk, vo=vo)


def _first_units(branch: Branch, shape: Shape) -> dict[GroupName, Units]:
    if isinstance(shape, MlpShape):
        return {"hidden": tuple(range(shape.hidden))}
    heads = branch.shape.size("heads")
    found: dict[GroupName, Units] = {}
    if shape.heads < heads:
        found["heads"] = tuple(range(shape.heads))
    if shape.qk < branch.shape.size("qk"):
        found["qk"] = (tuple(range(shape.qk)),) * heads
    if shape.vo < branch.shape.size("vo"):
        found["vo"] = (tuple(range(shape.vo)),) * heads
    return found
