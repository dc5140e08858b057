"""From what an analysis measured to its record: plain data that goes into JSON and the page."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from secateur.analysis.agreement import rank_correlation
from secateur.analysis.removals import Removals, Series
from secateur.analysis.scores import Score
from secateur.analysis.sums import (
    Plain,
    head_records,
    similarity_records,
    spectrum_records,
)
from secateur.measurement.timing import Times
from secateur.models.host import Host
from secateur.models.types import Anatomy, Branch, MlpShape, Shapes
from secateur.statistics import Statistics
from secateur.statistics.divergence import LossName, unit_of


def measured(
    host: Host,
    statistics: Statistics,
    removals: Removals,
    scores: Sequence[Score],
    times: Times | None,
    tolerance: float,
    loss: LossName | None = None,
) -> Plain:
    """All of the record that was measured: the model, its layers, and what the sums say."""
    anatomy = host.anatomy
    total = anatomy.cost()
    return {
        "family": host.family.title,
        "width": anatomy.width,
        "tokens": anatomy.tokens,
        "num_classes": anatomy.num_classes,
        "input_size": anatomy.input_size,
        "macs": total.macs,
        "params": total.params,
        "ms": None if times is None else times.total_ms,
        "setting": None if times is None else str(times.setting),
        "unit": unit_of(anatomy.num_classes, loss),
        "tolerance": tolerance,
        "probe_images": removals.images,
        "layers": layer_records(
            anatomy, statistics, removals, scores, removals.droppable(tolerance), times
        ),
        "blocks": block_records(anatomy, removals),
        "series": [series_record(anatomy, each, times) for each in removals.series],
        "curves": curve_records(removals),
        "similarity": similarity_records(statistics),
        "heads": head_records(anatomy, statistics),
        "spectra": spectrum_records(host, statistics),
        "interactions": interaction_record(removals),
        "scores": score_records(anatomy, removals, scores),
        "shares": share_records(anatomy, times),
        "refusals": refusals(anatomy),
    }


def layer_records(
    anatomy: Anatomy,
    statistics: Statistics,
    removals: Removals,
    scores: Sequence[Score],
    droppable: Sequence[str],
    times: Times | None,
) -> list[Plain]:
    """One per branch."""
    found: list[Plain] = []
    for branch in anatomy.branches:
        sums = statistics.of("branch_similarity", branch.id)
        cost, degradation = branch.cost(branch.shape), removals.layers[branch.id]
        found.append(
            {
                "id": branch.id,
                "kind": branch.kind,
                "block": branch.block,
                "macs": cost.macs,
                "params": cost.params,
                "ms": None if times is None else times.of(branch.id),
                "degradation": degradation.divergence,
                "stderr": degradation.stderr,
                "agreement": degradation.agreement,
                "update": float((sums["update_square"] / sums["stream_square"]).sqrt()),
                "turn": float(1 - sums["cosine"] / sums["count"]),
                "droppable": branch.id in droppable,
                "scores": {score.name: score.worth[branch.id] for score in scores},
            }
        )
    return found


def block_records(anatomy: Anatomy, removals: Removals) -> list[Plain]:
    """One per block that has branches."""
    return [
        {
            "id": block.id,
            "index": block.index,
            "degradation": removals.blocks[block.id].divergence,
            "agreement": removals.blocks[block.id].agreement,
        }
        for block in anatomy.blocks
        if block.id in removals.blocks
    ]


def series_record(anatomy: Anatomy, series: Series, times: Times | None) -> Plain:
    """What is gone at each point, as shares of the model."""
    total = anatomy.cost()
    costs = [anatomy.cost(shapes) for shapes in series.shapes]
    return {
        "structure": series.structure,
        "what": series.what,
        "macs": [1 - cost.macs / total.macs for cost in costs],
        "params": [1 - cost.params / total.params for cost in costs],
        "ms": [None if times is None else _gone(anatomy, times, s) for s in series.shapes],
        "degradation": [degradation.divergence for degradation in series.degradation],
        "agreement": [degradation.agreement for degradation in series.degradation],
        "stderr": [degradation.stderr for degradation in series.degradation],
        "order": series.order,
    }


def _gone(anatomy: Anatomy, times: Times, shapes: Shapes) -> float | None:
    """Share of the time that is gone; None where layers have shapes that were not timed."""
    if any(shape not in (None, anatomy.branch(name).shape) for name, shape in shapes.items()):
        return None
    gone = sum(times.of(name) for name, shape in shapes.items() if shape is None)
    return gone / times.total_ms


def curve_records(removals: Removals) -> list[Plain]:
    """The candidate list of every group of every branch, and which of its sizes were measured."""
    measured: dict[tuple[str, str], list[int]] = {}
    for probe in removals.probed.probes:
        measured.setdefault((probe.owner, probe.group), []).append(probe.size)
    return [
        {
            "owner": entry.owner,
            "group": entry.group,
            "sizes": entry.sizes,
            "degradation": entry.losses,
            "measured": measured[entry.owner, entry.group],
        }
        for entry in removals.probed.candidates
        if len(entry.sizes) > 1
    ]


def interaction_record(removals: Removals) -> Plain | None:
    """Degradation of pairs beyond the sum of both alone, over the layers that were paired."""
    if not removals.pairs:
        return None
    paired = {name for pair in removals.pairs for name in pair}
    owners = [name for name in removals.layers if name in paired]
    together: list[list[float | None]] = [[None] * len(owners) for _ in owners]
    excess: list[list[float | None]] = [[None] * len(owners) for _ in owners]
    for (one, other), degradation in removals.pairs.items():
        alone = removals.layers[one].divergence + removals.layers[other].divergence
        for a, b in ((one, other), (other, one)):
            together[owners.index(a)][owners.index(b)] = degradation.divergence
            excess[owners.index(a)][owners.index(b)] = degradation.divergence - alone
    return {"owners": owners, "excess": excess, "together": together}


def score_records(anatomy: Anatomy, removals: Removals, scores: Sequence[Score]) -> list[Plain]:
    """How each criterion orders the branches, all and of one kind; the best first."""
    kinds = {branch.id: branch.kind for branch in anatomy.branches}
    degradation = {name: found.divergence for name, found in removals.layers.items()}

    def rho(score: Score, kind: str | None) -> float | None:
        own = {k: v for k, v in degradation.items() if kind is None or kinds[k] == kind}
        return rank_correlation(score.worth, own)

    rows: list[Plain] = [
        {
            "name": score.name,
            "title": score.title,
            "rho": rho(score, None),
            "rho_attention": rho(score, "attention"),
            "rho_mlp": rho(score, "mlp"),
        }
        for score in scores
    ]
    return sorted(rows, key=lambda row: -2.0 if row["rho"] is None else -_number(row["rho"]))


def share_records(anatomy: Anatomy, times: Times | None) -> list[Plain]:
    """Where parameters, MACs and time are: by structure, as shares of the whole."""
    total, ends = anatomy.cost(), anatomy.ends.at(anatomy.width)
    params, macs = {"rest": float(ends.params)}, {"rest": float(ends.macs)}
    for branch in anatomy.branches:
        for part, (own_params, own_macs) in _parts(branch).items():
            params[part] = params.get(part, 0.0) + own_params
            macs[part] = macs.get(part, 0.0) + own_macs
    rows: list[Plain] = [
        {"what": "params", "total": total.params, "parts": _of(params, total.params)},
        {"what": "macs", "total": total.macs, "parts": _of(macs, total.macs)},
    ]
    if times is not None:
        time = {"rest": times.ends_ms}
        for branch in anatomy.branches:
            name = "attention" if branch.kind == "attention" else "hidden"
            time[name] = time.get(name, 0.0) + times.of(branch.id)
        rows.append({"what": "ms", "total": times.total_ms, "parts": _of(time, times.total_ms)})
    return rows


def _parts(branch: Branch) -> dict[str, tuple[float, float]]:
    """Parameters and MACs of a branch by the units they belong to; norms and so on are `rest`."""
    width, shape = branch.width, branch.shape
    whole = branch.cost(shape)
    if isinstance(shape, MlpShape):
        own = {"hidden": branch.per_hidden.at(width) * shape.hidden}
    else:
        own = {
            "qk": branch.per_qk.at(width) * (shape.heads * shape.qk),
            "vo": branch.per_vo.at(width) * (shape.heads * shape.vo),
        }
    parts = {name: (float(cost.params), float(cost.macs)) for name, cost in own.items()}
    parts["rest"] = (
        whole.params - sum(cost.params for cost in own.values()),
        whole.macs - sum(cost.macs for cost in own.values()),
    )
    return parts


def _of(parts: Mapping[str, float], total: float) -> dict[str, float]:
    return {name: value / total for name, value in parts.items()}


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value


def refusals(anatomy: Anatomy) -> dict[str, str]:
    """Why some layers, or the model, cannot offer a group."""
    found: dict[str, str] = {str(group): why for group, why in anatomy.refusals.items()}
    for branch in anatomy.branches:
        found |= {str(group): why for group, why in branch.refusals.items()}
    return found


def environment() -> dict[str, str]:
    """Versions of what an analysis rests on."""
    known = {"python": platform.python_version()}
    for name in ("secateur", "torch", "timm"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "not installed"
    return known
