"""What an analysis removes, and the degradation of each removal, measured on the whole model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.ablation.candidates import Probed, measure_candidates
from secateur.ablation.layers import in_pairs, without_each, without_more_and_more
from secateur.ablation.probe_runner import ProbeRunner
from secateur.ablation.refitted import Refitted, reduced
from secateur.allocation.candidates import Limits, allowed_sizes
from secateur.allocation.types import shape_of
from secateur.analysis.expected import steps_of
from secateur.models.host import Host
from secateur.models.types import Anatomy, Branch, GroupName, Shape, Shapes
from secateur.progress import Progress
from secateur.statistics import Statistics
from secateur.statistics.divergence import Degradation, LossName
from secateur.surgery.replace import mean_update

GROUPS: tuple[GroupName, ...] = ("qk", "vo", "heads", "hidden")
POINTS = 8
"""Most points of a series of removed layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much an analysis measures: probe images, shares of a group's size at which one layer and
    all layers at once are measured, and layers among which all pairs are left out."""

    images: int
    shares: tuple[float, ...]
    all_shares: tuple[float, ...]
    pairs_of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Growing parts of a structure removed: each point, the shapes left, and the degradation."""

    structure: str
    what: tuple[str, ...]
    shapes: tuple[Shapes, ...]
    degradation: tuple[Degradation, ...]
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals:
    """All that was measured on `images` probe images; `passes` counts, by stage, how often an
    image ran through the whole model."""

    images: int
    layers: dict[str, Degradation]
    blocks: dict[str, Degradation]
    series: list[Series]
    probed: Probed
    pairs: dict[tuple[str, str], Degradation]
    passes: dict[str, float]

    def droppable(self, tolerance: float) -> tuple[str, ...]:
        """The least damaging layers that were left out together within the tolerance."""
        together = next(series for series in self.series if series.structure == "layers")
        within = [
            len(what_is_gone(shapes))
            for shapes, degradation in zip(together.shapes, together.degradation, strict=True)
            if degradation.divergence <= tolerance
        ]
        return together.order[: max(within, default=0)]


def what_is_gone(shapes: Shapes) -> list[str]:
    """The branches that are dropped."""
    return [name for name, shape in shapes.items() if shape is None]


@torch.no_grad()
def measure_removals(
    host: Host,
    statistics: Statistics,
    images_PCHW: Tensor,
    effort: Effort,
    progress: Progress | None,
    loss: LossName | None = None,
) -> Removals:
    """Leave out layers and blocks, alone, together and in pairs; make groups smaller."""
    anatomy = host.anatomy
    means = {branch.id: mean_update(statistics, branch) for branch in anatomy.branches}
    work = ProbeRunner.of(host, images_PCHW, means, loss)
    passes: dict[str, float] = {}

    groups = offered(anatomy)
    points = sum(len(_points(anatomy, group, effort.all_shares)) for group in groups)
    steps = steps_of(anatomy, groups, effort.shares, points, effort.pairs_of, _counts)
    each = len(images_PCHW) / len(work.runner)

    def account(stage: str) -> None:
        passes[stage] = work.steps_run * each
        work.steps_run = 0.0

    def tell(*_: int) -> None:
        done = sum(passes.values()) + work.steps_run * each
        if progress is not None:
            progress("remove", round(min(done, steps * each)), round(steps * each))

    layers = without_each(work, {name: (name,) for name in work.names}, tell)
    whole = {block.id: block.branches for block in anatomy.blocks if block.branches}
    blocks = without_each(work, whole, tell)
    account("layers and blocks")
    series = _depth_series(work, anatomy, layers, blocks)
    tell()
    account("more and more layers")
    pairs = in_pairs(work, _least(layers, effort.pairs_of), tell)
    account("pairs of layers")
    reducer = Refitted(statistics, Limits())
    probed = measure_candidates(work, reducer, groups, Limits(), effort.shares, tell)
    account("sizes of one layer")
    for group in groups:
        series += _width_series(work, anatomy, statistics, group, effort.all_shares)
        tell()
    account("sizes of all layers")
    return Removals(
        images=len(images_PCHW),
        layers=layers,
        blocks=blocks,
        series=series,
        probed=probed,
        pairs=pairs,
        passes=passes,
    )


def offered(anatomy: Anatomy) -> tuple[GroupName, ...]:
    """The groups of units that some branch of the model offers."""
    return tuple(group for group in GROUPS if any(group in b.groups for b in anatomy.branches))


def _least(degradation: dict[str, Degradation], count: int) -> list[str]:
    return sorted(degradation, key=lambda name: degradation[name].divergence)[:count]


def _depth_series(
    work: ProbeRunner,
    anatomy: Anatomy,
    layers: dict[str, Degradation],
    blocks: dict[str, Degradation],
) -> list[Series]:
    """Attention layers, MLPs, layers of both kinds, and blocks: the least damaging first."""
    kinds = {branch.id: branch.kind for branch in anatomy.branches}
    found = []
    for structure in ("attention", "mlp", "layers"):
        own = {name: d for name, d in layers.items() if structure in ("layers", kinds[name])}
        if own:
            order = _least(own, len(own))
            found.append(_depth(work, anatomy, structure, [(name,) for name in order], order))
    if blocks:
        order = _least(blocks, len(blocks))
        parts = {block.id: block.branches for block in anatomy.blocks}
        found.append(_depth(work, anatomy, "blocks", [parts[name] for name in order], order))
    return found


def _depth(
    work: ProbeRunner,
    anatomy: Anatomy,
    structure: str,
    groups: list[tuple[str, ...]],
    order: list[str],
) -> Series:
    counts = _counts(len(groups))
    degradation = without_more_and_more(work, groups, counts)
    shapes = []
    for count in counts:
        gone = {name for own in groups[:count] for name in own}
        shapes.append({name: None if name in gone else s for name, s in anatomy.shapes.items()})
    return Series(
        structure=structure,
        what=tuple(f"{count} of {len(groups)}" for count in counts),
        shapes=tuple(shapes),
        degradation=tuple(degradation),
        order=tuple(order),
    )


def _counts(total: int) -> list[int]:
    """How many are left out at each point of a series: from one to half, denser at first."""
    most = max(1, total // 2)
    shares = [(point + 1) / POINTS for point in range(POINTS)]
    return sorted({max(1, round(most * share**1.5)) for share in shares})


def _width_series(
    work: ProbeRunner,
    anatomy: Anatomy,
    statistics: Statistics,
    group: GroupName,
    shares: Sequence[float],
) -> list[Series]:
    """One group at the same share in every layer that offers it, repaired from the statistics."""
    points: list[tuple[str, Shapes, Degradation]] = []
    for sizes in _points(anatomy, group, shares):
        smaller = {b.id: b for b in anatomy.branches if b.id in sizes}
        smaller = {k: b for k, b in smaller.items() if sizes[k] < b.shape.size(group)}
        weights = {
            name: reduced(
                work.runner.weights(branch),
                group,
                sizes[name],
                statistics.about(name),
                name,
            )
            for name, branch in smaller.items()
        }
        shapes: dict[str, Shape | None] = {
            b.id: shape_of(b, "", {(b.id, group): sizes[b.id]}) if b.id in smaller else b.shape
            for b in anatomy.branches
        }
        kept = sum(sizes.values()) / sum(
            b.shape.size(group) for b in anatomy.branches if b.id in sizes
        )
        points.append((f"{100 * kept:.3g} % kept", shapes, work.with_weights(weights)))
    if not points:
        return []
    what, left, degradation = zip(*points, strict=True)
    return [Series(structure=group, what=what, shapes=left, degradation=degradation)]


def _points(anatomy: Anatomy, group: GroupName, shares: Sequence[float]) -> list[dict[str, int]]:
    """Sizes of a group in all branches that offer it, nearest to each share below the whole."""
    own = [branch for branch in anatomy.branches if group in branch.groups]
    whole = tuple(branch.shape.size(group) for branch in own)
    found = {tuple(_nearest(b, group, share, Limits()) for b in own): None for share in shares}
    names = [branch.id for branch in own]
    return [dict(zip(names, sizes, strict=True)) for sizes in found if sizes != whole]


def _nearest(branch: Branch, group: GroupName, share: float, limits: Limits) -> int:
    wanted = share * branch.shape.size(group)
    return min(allowed_sizes(branch, group, limits), key=lambda size: abs(size - wanted))
