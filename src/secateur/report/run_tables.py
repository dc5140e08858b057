"""The tables of a run's page: dense beside pruned, provenance, every layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.report.figures import Tile
from secateur.report.record import (
    AccuracyRecord,
    LatencyRow,
    Pair,
    PolishRecord,
    RunRecord,
    blocks_of,
    latency_settings,
)
from secateur.report.words import (
    GROUP_NAMES,
    NBSP,
    change,
    count_like,
    duration,
    listed,
    milliseconds,
    percent,
    plural,
    points,
    significant,
    size_lines,
)

REPAIRS = {
    "none": "no repair",
    "mean": "means of what was removed folded into biases",
    "least_squares": "least-squares repair of the survivors",
    "least_squares_symmetric": "least-squares repair of the survivors, logit maps symmetrised",
}
ALLOCATIONS = {
    "uniform": "the same share in every layer",
    "ranking": "sizes by one ranking over all layers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A row of dense beside pruned."""

    name: str
    dense: str
    pruned: str
    change: str
    note: str = ""


def cost_tile(name: str, pair: Pair, unit: str) -> Tile:
    """The share of a cost that is left, with both counts in one unit."""
    return Tile(
        name=f"{name} kept",
        value=percent(pair.kept),
        detail=change(pair.dense, pair.pruned) + unit,
        more=f"{count_like(pair.dense, pair.dense - pair.pruned)}{unit} removed",
        meter=pair.kept,
    )


def comparisons(run: RunRecord) -> Iterator[Comparison]:
    """What was measured, dense beside pruned; what was not says so."""
    for name, pair in (("MACs", run.macs), ("Parameters", run.params)):
        yield Comparison(
            name=name,
            dense=f"{pair.dense:,}",
            pruned=f"{pair.pruned:,}",
            change=percent(pair.kept),
        )
    if run.width is not None and run.width.kept < 1:
        yield Comparison(
            name="Stream width",
            dense=f"{run.width.dense:,}",
            pruned=f"{run.width.pruned:,}",
            change=percent(run.width.kept),
        )
    yield from _accuracy_rows(run.accuracy.dense, run.accuracy.pruned)
    if not run.latency:
        yield Comparison(
            name="Latency",
            dense="–",
            pruned="–",
            change="",
            note="not measured; give --latency",
        )
    for dense, *others in latency_settings(run.latency):
        for row in others:
            yield Comparison(
                name="Latency",
                dense=f"{milliseconds(dense.median_ms)} (IQR {significant(dense.iqr_ms)})",
                pruned=f"{milliseconds(row.median_ms)} (IQR {significant(row.iqr_ms)})",
                change=percent(row.ratio),
                note=setting_words(row),
            )


def _accuracy_rows(
    dense: AccuracyRecord | None, pruned: AccuracyRecord | None
) -> Iterator[Comparison]:
    if pruned is None:
        yield Comparison(
            name="Top-1", dense="–", pruned="–", change="", note="not measured; give --eval-data"
        )
        return
    for name, field in (("Top-1", "top1"), ("Top-5", "top5")):
        before, after = getattr(dense, field, None), getattr(pruned, field)
        if after is None:
            continue
        errors = field == "top1"
        yield Comparison(
            name=name,
            dense="–" if before is None else _top(dense, before, errors),
            pruned=_top(pruned, after, errors),
            change="" if before is None else points(after - before),
            note=f"{plural(pruned.n, 'image')}" + (", ± standard error" if errors else ""),
        )
    if pruned.agreement is not None:
        agreement = percent(pruned.agreement / 100)
        yield Comparison(
            name="Agreement", dense="", pruned=agreement, change="", note="same class as dense"
        )
    if pruned.kl is not None:
        kl = f"{pruned.kl:.3g}{NBSP}nats"
        yield Comparison(name="KL", dense="", pruned=kl, change="", note="KL(dense ‖ pruned)")
    if pruned.squared_error is not None:
        error = percent(pruned.squared_error)
        note = "of the variance of the dense output"
        yield Comparison(name="Squared error", dense="", pruned=error, change="", note=note)


def _top(accuracy: AccuracyRecord | None, value: float, with_error: bool) -> str:
    error = accuracy.stderr if accuracy is not None and with_error else None
    return percent(value / 100) + ("" if error is None else f" ±{NBSP}{error:.1f}")


def _use(shortfall_percent: float) -> str:
    if shortfall_percent >= 0:
        return f"{shortfall_percent:.2f}{NBSP}% unused"
    return f"missed by {-shortfall_percent:.2f}{NBSP}%, within the tolerance for measured times"


def provenance(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Everything needed to do the run again, as names and values."""
    yield "Preset", f"{run.preset}: {run.preset_title}"
    yield "Source", run.preset_source
    yield "Budget", run.budget
    if run.target is not None:
        unit = {"macs": "MACs", "params": "parameters"}.get(run.target.unit, run.target.unit)
        yield (
            "Reached",
            f"{_amount(run.target.reached, unit)} of at most {_amount(run.target.limit, unit)} "
            f"{unit}; {_use(run.target.shortfall_percent)}",
        )
    yield "Groups", listed([f"{GROUP_NAMES.get(group, group)} ({group})" for group in run.groups])
    yield "Allocation", f"{run.allocation}: {ALLOCATIONS.get(run.allocation, run.allocation)}"
    yield "Repair", f"{run.repair}: {REPAIRS.get(run.repair, run.repair)}"
    if run.replacement is not None:
        yield "Replacement", f"{run.replacement}, for dropped layers"
    if run.learning is None:
        yield "Polish", _polish(run.polish)
    yield "Seed", str(run.seed)
    yield "Calibration", f"{plural(run.data.images, 'image')} from {run.data.source}"
    if run.data.fingerprint:
        yield "Fingerprint", run.data.fingerprint
    unreadable = run.data.unreadable
    yield "Unreadable", ", ".join(unreadable) if unreadable else "none"
    yield "Predicted loss", f"{run.predicted_loss:.4g} (in the unit of the criterion)"
    yield (
        "Versions",
        ", ".join(
            f"{name} {run.environment[name]}"
            for name in ("secateur", "torch", "timm", "python")
            if name in run.environment
        ),
    )
    machine = [run.environment.get("platform", ""), run.environment.get("device", "")]
    if threads := run.environment.get("threads"):
        machine.append(f"{threads} CPU thread" + ("" if threads == "1" else "s"))
    yield "Machine", ", ".join(part for part in machine if part)


def _amount(value: float, unit: str) -> str:
    return significant(value) if unit == "ms" else f"{value:,.0f}"


def _polish(polish: PolishRecord | None) -> str:
    if polish is None:
        return "none: nothing was trained"
    return (
        f"{plural(polish.steps, 'step')} without labels in {duration(polish.seconds)}; KL(dense ‖ "
        f"pruned) on {plural(polish.held_out, 'held-out image')} "
        f"{polish.kl_before:.3g} → {polish.kl_after:.3g}{NBSP}nats"
    )


def branch_rows(run: RunRecord) -> Iterator[dict[str, object]]:
    """One row per branch; `opens` marks the first of a block."""
    for block in blocks_of(run.branches):
        for index, branch in enumerate(block):
            yield {
                "opens": index == 0,
                "block": branch.block,
                "id": branch.id,
                "kind": branch.kind,
                "dropped": branch.kept is None,
                "sizes": size_lines(branch),
                "macs": change(branch.macs.dense, branch.macs.pruned),
                "params": change(branch.params.dense, branch.params.pruned),
                "kept": branch.macs.kept,
                "percent": percent(branch.macs.kept, 0),
            }


def setting_words(row: LatencyRow) -> str:
    """How a latency was measured."""
    return (
        f"{row.runtime}, batch {row.batch_size}, {row.device}, "
        f"{plural(row.threads, 'thread')}, {plural(row.runs, 'run')}"
    )
