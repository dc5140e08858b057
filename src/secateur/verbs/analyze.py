"""The redundancy of one model: observe, remove, reduce and compare each part; write the record.

found = secateur.analyze(model, "images/")
found.save("redundancy/")      # analysis.html and analysis.json
found.record["layers"][0]["degradation"]
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn

from secateur.analysis import record as plain
from secateur.analysis.removals import Effort, measure_removals
from secateur.analysis.scores import (
    Observed,
    branch_criteria,
    observe_all,
    score_branches,
)
from secateur.data.batches import Batches
from secateur.data.split import keep_evenly
from secateur.data.targets import multi_hot
from secateur.devices import require_double
from secateur.errors import UserError
from secateur.measurement.timing import Times, check_timing, time_branches
from secateur.models.caches import evaluating, observable
from secateur.models.host import Host, host_of
from secateur.models.sharing import has_shared, separated
from secateur.models.walk_check import require_walk
from secateur.progress import timed
from secateur.registry import unknown
from secateur.report.analysis_page import render_analysis
from secateur.report.analysis_record import AnalysisRecord
from secateur.report.analysis_words import findings
from secateur.request.takes import takes
from secateur.statistics.divergence import LossName, loss_for, unit_of
from secateur.storage.directories.files import check_files, write_files
from secateur.verbs.load import open_data, unreadable_note
from secateur.verbs.requests import AnalyzeRequest

PAGE, DATA = "analysis.html", "analysis.json"
TOLERANCE = {"nats": 0.1, "1 − cosine": 0.05, "of the variance": 0.05}
"""Degradation within which layers count as droppable, by unit."""
BACKWARD = 2
"""A backward pass counts as this many forward passes."""
EFFORTS = {
    "quick": Effort(images=32, shares=(0.5, 0.25), all_shares=(0.75, 0.5), pairs_of=8),
    "full": Effort(
        images=64,
        shares=(0.75, 0.5, 0.25, 0.125),
        all_shares=(0.875, 0.75, 0.5, 0.25),
        pairs_of=12,
    ),
}


@dataclass(slots=True, kw_only=True)
class Analysis:
    """The result as plain data; `secateur.report.analysis_record` describes the fields."""

    record: dict[str, object]

    @property
    def findings(self) -> list[str]:
        """The main findings as sentences."""
        return findings(AnalysisRecord.model_validate(self.record))

    def to_json(self) -> dict[str, object]:
        """The record, the findings first."""
        return {"findings": self.findings, **self.record}

    def html(self) -> str:
        """The page: one file that opens offline."""
        return render_analysis(self.record)

    def save(self, out: str | Path, *, overwrite: bool = False) -> str | None:
        """Write analysis.html and analysis.json into `out`, both or none.

        An earlier analysis there is replaced only with `overwrite`; the returned sentence describes
        it. Other files in `out` remain. UserError for a directory that holds anything else.
        """
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        files = {PAGE: self.html(), DATA: text + "\n"}
        return write_files(out, files, overwrite=overwrite, what="an analysis")


def check_analysis(request: AnalyzeRequest) -> None:
    """UserError for an invalid request; opens nothing."""
    if request.effort not in EFFORTS:
        raise UserError(unknown("effort", request.effort, list(EFFORTS)))
    check_timing(request.runtime, request.latency_batch)
    if request.tolerance is not None and not request.tolerance >= 0:
        raise UserError(
            f"the tolerance must be a degradation of at least 0, not {request.tolerance:g}."
        )


def check_place(out: str | Path, overwrite: bool) -> None:
    """UserError for a place where an analysis cannot be written."""
    check_files(out, (PAGE, DATA), overwrite=overwrite, what="an analysis")


@takes(AnalyzeRequest)
def analyze(model: nn.Module, images: object, request: AnalyzeRequest) -> Analysis:
    """Measure the redundancy of `model`, on images without labels.

    `images` is a path or data string, or any other input of `prune`. `tolerance` is the largest
    degradation (in the unit of the loss) at which layers count as droppable. `loss` compares
    outputs: see `secateur.prune`. The model is not changed, and memory does not grow with `limit`;
    docs/methods/analysis.md lists the measurements and their cost. Raises UserError for invalid
    options, unknown models and unreadable images.
    """
    check_analysis(request)
    return analyze_checked(model, images, request)


def analyze_checked(model: nn.Module, images: object, request: AnalyzeRequest) -> Analysis:
    """`analyze` for a request that was checked before the model was opened."""
    host_of(model)  # Raises, before the model is looked into.
    model = observable(model)
    if has_shared(model):
        # WHY: hooks on a module that is used twice cannot tell one use from the other.
        model = separated(model)
    host = host_of(model)
    anatomy = host.anatomy
    require_double(next(model.parameters()).device, "the analysis")
    if not anatomy.branches:
        raise UserError("the model has no attention layer or MLP left to analyse.")
    compared = loss_for(anatomy.num_classes, request.loss)
    require_walk(model)
    if request.loss is None:
        compared = loss_for(anatomy.num_classes, multi_label=multi_hot(images))
    batches, used = open_data(model, images, labels_needed=False, **request.reading())
    tolerance = request.tolerance
    if tolerance is None:
        tolerance = TOLERANCE[unit_of(anatomy.num_classes, compared)]
    timing = None
    if request.latency:
        timing = partial(time_branches, runtime=request.runtime, batch_size=request.latency_batch)
    # WHY: dropout and stochastic depth would be measured as if they were the model.
    with evaluating(model):
        record = _measured(host, batches, request, tolerance, timing, compared)
    record |= {
        "loss": compared,
        "effort": request.effort,
        "seed": request.seed,
        "data": asdict(used),
        "environment": plain.environment(),
    }
    if used.unreadable:
        record["notes"] = [*cast(list[str], record["notes"]), unreadable_note(used.unreadable)]
    return Analysis(record=record)


def _measured(
    host: Host,
    batches: Batches,
    request: AnalyzeRequest,
    tolerance: float,
    timing: Callable[..., Times] | None,
    loss: LossName,
) -> dict[str, object]:
    """Observe, score, remove and time, with the cost of each stage."""
    seconds, passes = dict[str, float](), dict[str, float]()
    chosen = branch_criteria(host.anatomy)
    effort, progress = EFFORTS[request.effort], request.progress
    with timed(seconds, "observe"):
        seen, probes = keep_evenly(batches, effort.images)
        observed = observe_all(host.model, seen, chosen, progress, loss)
        passes["observe"] = _observed_passes(observed)
        probes_PCHW = torch.cat(probes)
    with timed(seconds, "score"):
        scores, notes = score_branches(host, chosen, observed, request.seed)
    with timed(seconds, "remove"), torch.no_grad():
        removals = measure_removals(host, observed.forward, probes_PCHW, effort, progress, loss)
        passes |= removals.passes
    times = None
    if timing is not None:
        with timed(seconds, "time"):
            times = timing(host, progress=progress)
    with timed(seconds, "summarise"), torch.no_grad():
        record = plain.measured(host, observed.forward, removals, scores, times, tolerance, loss)
    return record | {"notes": list(notes), "costs": _costs(passes, seconds, batches.images)}


def _observed_passes(observed: Observed) -> float:
    """Image passes of the observing stage."""
    back = 0 if observed.backward is None else (1 + BACKWARD) * observed.backward.images
    return observed.forward.images + back


def _costs(
    passes: Mapping[str, float], seconds: Mapping[str, float], images: int
) -> list[dict[str, object]]:
    """Passes over all images by stage; seconds, where a stage was timed as a whole."""
    rows: list[dict[str, object]] = [
        {"stage": name, "passes": count / images, "seconds": seconds.get(name)}
        for name, count in passes.items()
    ]
    rows += [
        {"stage": name, "passes": None, "seconds": value}
        for name, value in seconds.items()
        if name not in passes
    ]
    return rows
