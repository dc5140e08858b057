"""Run cells: one dense model, one look at the calibration images per seed, all cells share them."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.data.batches import Batches, as_batches
from secateur.errors import UserError
from secateur.measurement.accuracy import Predictions, predict, summarize
from secateur.methods.by_preset import method_of
from secateur.methods.method import Job, Prepared
from secateur.methods.task import Task, planned
from secateur.models.caches import observable
from secateur.models.host import Host, host_of
from secateur.models.types import Anatomy, AttentionShape, GroupName, Shape, Shapes
from secateur.models.walk_check import require_walk
from secateur.statistics import Statistics, observe
from secateur.study.shared_images import SharedImages
from secateur.study.spec import Study
from secateur.study.store import OK, Outcome
from secateur.study.streams import Streams, keep_streams
from secateur.study.structures import BY_NAME, can_score
from secateur.study.tasks import needs_of_study
from secateur.verbs.load import load, open_data

KEPT = 4
"""Preparations of methods that are kept at a time."""


@dataclass(frozen=True, slots=True)
class StudyHost(Host):
    """A dense model of a study with its evaluation images, decoded once, and what it says.

    `streams` are what passes inside it, from where a pruned model may start.
    """

    name: str
    study: Study
    evaluation: list[tuple[Tensor, Tensor]]
    streams: Streams
    dense_logits: list[Tensor]
    dense: Outcome

    def evaluate(self, model: nn.Module) -> Outcome:
        """Accuracy of a model, and its agreement with the dense one, image by image."""
        logits = self.streams.logits(model)
        known = model if logits is None else _Told(logits)
        told = _Told(self.dense_logits)
        return _outcome(predict(known, as_batches(self.evaluation), reference=told))


def open_host(study: Study, name: str) -> StudyHost:
    """Load a model of a study and decode its evaluation images; UserError as from `load`."""
    torch.set_num_threads(study.threads)
    spec = study.models[name]
    model = load(
        spec.source,
        checkpoint=spec.checkpoint,
        num_classes=spec.num_classes,
        img_size=spec.img_size,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        interpolation=spec.interpolation,
        device=study.device,
    )
    batches, _ = open_data(
        model,
        spec.evaluation or study.evaluation.data,
        limit=study.evaluation.limit,
        seed=0,
        batch_size=study.batch_size,
    )
    evaluation = decoded(batches)
    model = observable(model)
    host = host_of(model)
    require_walk(model)
    if host.anatomy.num_classes == 1:
        raise UserError(f"{name} has one output, but a study compares predicted classes.")
    images = (images_BCHW for images_BCHW, _ in evaluation)
    model.eval()
    streams, logits = keep_streams(host, images)
    dense = _outcome(predict(_Told(logits), as_batches(evaluation), reference=_Told(logits)))
    cost = host.anatomy.cost()
    dense.result.update(macs=cost.macs, params=cost.params)
    rest = (name, study, evaluation, streams, logits, dense)
    return StudyHost(model, host.family, host.anatomy, *rest)


def decoded(batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """All batches in memory; images without labels get the label -1."""
    pairs = []
    for batch in batches:
        labels_B = batch.labels_B
        if labels_B is None:
            count, device = len(batch.images_BCHW), batch.images_BCHW.device
            labels_B = torch.full((count,), -1, device=device)
        pairs.append((batch.images_BCHW, labels_B))
    return pairs


@dataclass
class Bench:
    """A host and one draw of calibration images."""

    host: StudyHost
    seed: int
    _prepared: dict[str, Prepared] = field(default_factory=dict)

    @cached_property
    def calibration(self) -> Batches:
        """The images of this seed, decoded once."""
        study = self.host.study
        batches, _ = open_data(
            self.host.model,
            study.models[self.host.name].calibration or study.calibration.data,
            limit=study.calibration.limit,
            seed=self.seed,
            batch_size=study.batch_size,
            labels_needed=False,
        )
        return as_batches(decoded(batches))

    @cached_property
    def statistics(self) -> Statistics:
        """All that any cell of the study needs, from one pass."""
        needs = needs_of_study(self.host.study, self.host)
        if not needs:
            return Statistics(images=0, tokens=0)
        return observe(self.host.model, self.calibration, needs)

    @cached_property
    def images(self) -> SharedImages:
        """The calibration images with what passes over them have found."""
        return SharedImages(
            batches=self.calibration, dense=self.host.model, statistics=lambda: self.statistics
        )

    def job(self, task: Task) -> Job:
        """What a method needs to carry out a task on this host."""
        host = planned(self.host, task)
        return Job(host.model, host.family, host.anatomy, task=task, images=self.images)

    def prepared(self, job: Job) -> Prepared:
        """What the task's method prepares, which serves all its budgets; the last few are kept."""
        task = job.task
        goal = (type(task.budget).__name__, getattr(task.budget, "unit", None))
        options = replace(task.request, budget=None)
        key = repr((options, task.preset, goal, task.groups, task.limits))
        if key not in self._prepared:
            while len(self._prepared) >= KEPT:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[key] = method_of(task).prepare(job)
        return self._prepared[key]

    def layer_scores(self, name: str) -> list[tuple[str, int, str, str, str, float]]:
        """A criterion's score of every layer or block that may go: rows of the store's table."""
        host = self.host
        groups = {BY_NAME[structure].group for structure in host.study.structures}
        owners: list[tuple[GroupName, str, str]] = []
        if "branch" in groups and can_score(name, BY_NAME["joint"]):
            owners += [("branch", str(branch.kind), branch.id) for branch in host.anatomy.branches]
        if "block" in groups and can_score(name, BY_NAME["block"]):
            owners += [("block", "block", b.id) for b in host.anatomy.blocks if b.branches]
        found = []
        for group, structure, owner in owners:
            which = criteria.get(name)
            worth = ask(which, host, group, owner, self.statistics, seed=self.seed, settings=None)
            found.append((host.name, self.seed, structure, name, owner, float(worth)))
        return found


def finish(
    bench: Bench,
    smaller: nn.Module,
    predicted: float,
    started: float,
    known: Callable[[str], Outcome | None],
) -> Outcome:
    """Count and evaluate a pruned model; the same weights are never evaluated twice."""
    host = bench.host
    digest = digest_of(smaller)
    seen = known(digest)
    found = seen if seen is not None else host.evaluate(smaller.eval())
    after = host.family.read(smaller)
    cost, dense = after.cost(), host.anatomy.cost()
    result = {key: found.result[key] for key in ("top1", "top5", "stderr", "agreement", "kl", "n")}
    result |= {
        "macs": cost.macs / dense.macs,
        "params": cost.params / dense.params,
        "predicted": predicted,
        "shapes": shapes_json(host.anatomy, after.shapes),
        "signature": signature(after),
        "seconds": time.perf_counter() - started,
    }
    return Outcome(status=OK, result=result, digest=digest, correct=found.correct, kl=found.kl)


def digest_of(model: nn.Module) -> str:
    """A fingerprint of all weights."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(f"{name}{tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def signature(anatomy: Anatomy) -> str:
    """What decides about time: how many branches of which kind, place and sizes there are."""
    rows: dict[str, int] = {}
    for branch in anatomy.branches:
        place = f"{branch.kind} {branch.stage} {branch.width}x{branch.tokens} {branch.shape}"
        rows[place] = rows.get(place, 0) + 1
    return json.dumps(rows, sort_keys=True)


def shapes_json(anatomy: Anatomy, shapes: Shapes) -> dict[str, list[int] | None]:
    """Sizes by branch: [heads, qk, vo] or [hidden]; None for dropped ones."""
    return {branch.id: _sizes(shapes.get(branch.id)) for branch in anatomy.branches}


def _sizes(shape: Shape | None) -> list[int] | None:
    if shape is None:
        return None
    if isinstance(shape, AttentionShape):
        return [shape.heads, shape.qk, shape.vo]
    return [shape.hidden]


class _Told(nn.Module):
    """Gives the next of some known logits at each call, to save running the dense model again."""

    def __init__(self, logits: Iterable[Tensor]) -> None:
        super().__init__()
        self._rest = iter(list(logits))

    def forward(self, _images_BCHW: Tensor) -> Tensor:
        """The next logits."""
        return next(self._rest)


def _outcome(found: Predictions) -> Outcome:
    correct = None if found.correct_N is None else found.correct_N.numpy().astype(np.float32)
    kl = None if found.kl_N is None else found.kl_N.numpy().astype(np.float32)
    return Outcome(status=OK, result=dict(summarize(found).to_json()), correct=correct, kl=kl)
