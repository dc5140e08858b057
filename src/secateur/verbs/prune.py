"""Prune a model: observe → score → plan → cut → measure, in one call."""

from contextlib import nullcontext
from functools import partial

from torch import nn

from secateur.allocation.target import check_reachable
from secateur.allocation.types import Plan
from secateur.data.targets import multi_hot
from secateur.devices import require_double
from secateur.errors import UserError
from secateur.methods.by_preset import method_of
from secateur.methods.checked import Checked, check
from secateur.methods.images import Images
from secateur.methods.method import Job
from secateur.methods.request import PruneRequest
from secateur.methods.tail import with_tail, with_target
from secateur.methods.task import Task, planned, resolve
from secateur.methods.to_latency import cut_to_latency, times_count
from secateur.models.caches import evaluating, observable
from secateur.models.hook_points import lost_hooks_note
from secateur.models.host import Host, host_of
from secateur.models.rotation_check import require_rotatable
from secateur.models.sharing import refuse_shared
from secateur.models.types import Anatomy, Cost
from secateur.models.walk_check import require_walk
from secateur.progress import timed
from secateur.request.takes import takes
from secateur.statistics.divergence import LossName, check_output_criterion, loss_for
from secateur.storage.base import Base
from secateur.storage.reference import base_or_advice, logits
from secateur.storage.weights import refuse_not_finite
from secateur.surgery.replace import check_replacement
from secateur.training.polish import PolishReport, polish_, polish_note, require_polishable
from secateur.training.run_length import parse_run_length
from secateur.verbs.evaluate import measure_, require_classifier
from secateur.verbs.load import DataUsed, open_data, unreadable_note
from secateur.verbs.result import Result


@takes(PruneRequest)
def prune(model: nn.Module, images: object, request: PruneRequest) -> Result:
    """Return a smaller copy of `model` within a budget; the given model is not changed.

    A `recipe` replaces the budget by sizes layer by layer: the name of one that ships, or a YAML or
    JSON file (see `secateur.recipes`). The preset's criterion then chooses the units.

    `images` are calibration images: a path or data string, a tensor (n, C, H, W), a dataset or a
    loader; they need no labels. Of a path or data string, `limit` images are used (None: all).
    `polish`, such as '5min' or '200 steps', trains the smaller model briefly, without labels,
    towards the dense outputs on the calibration images; by default nothing is trained.
    `replacement` ('nothing', 'mean', 'scalar', 'affine', 'linear', 'merge') takes the place of
    dropped layers. `loss` compares outputs wherever a choice depends on them: 'kl' between class
    distributions, 'mse', squared error, 'bce' between the probabilities of several labels,
    'cosine'; the default is 'mse' for one output, 'cosine' for features, 'bce' with multi-hot
    labels, else 'kl'. See `secateur.allocation.budget` for budgets. On `eval_images`, with labels,
    dense and pruned model are evaluated; with `latency` they are timed in turns. Latency, that of a
    budget in ms included, is measured in `runtime` with `latency_batch` images at a time. An
    invalid request raises UserError before the pass over the images begins.
    """
    return prune_checked(model, images, check(request))


def prune_checked(model: nn.Module, images: object, asked: Checked) -> Result:
    """`prune` for a request that was checked before the model was opened."""
    request, scored, used = asked.request, None, None
    if request.eval_images is not None:
        require_classifier(model)
        reading = request.reading() | {"limit": None, "seed": 0}
        scored, used = open_data(model, request.eval_images, **reading)
    result = _pruned(model, images, asked)
    if used is not None:
        result.notes += [f"Evaluation: {note}" for note in used.notes()]
    if scored is not None or request.latency:
        with timed(result.seconds, "measure"):
            missing = request.latency and not result.latency
            measure_(result, model, scored, latency=missing, progress=request.progress)
    return result


def _pruned(model: nn.Module, images: object, asked: Checked) -> Result:
    """The smaller model, before any measurement."""
    request = asked.request
    host = host_of(observable(model))
    classes = host.anatomy.num_classes
    task = resolve(asked, host.anatomy)
    host = planned(host, task)
    loss = loss_for(classes, request.loss)
    _check(host, task, loss)
    base = base_or_advice(model)
    if request.loss is None:
        loss = loss_for(classes, multi_label=multi_hot(images))
    batches, data = open_data(model, images, labels_needed=False, **request.reading())
    if request.polish is not None:
        require_polishable(model, batches.images)
    shown = Images(batches=batches, progress=request.progress, loss=loss)
    job = Job(host.model, host.family, host.anatomy, task=task, images=shown)
    # WHY: dropout and stochastic depth would be measured as if they were the model.
    with evaluating(job.model):
        return _carried_out(job, data, base)


def _check(host: Host, task: Task, loss: LossName) -> None:
    """UserError for a task that cannot be carried out; reads no image."""
    model, anatomy = host.model, host.anatomy
    refuse_shared(host, task.groups)
    if task.request.polish is not None and "width" in task.groups and len(anatomy.streams) > 1:
        raise UserError(
            "a polish compares the streams of both models, which it cannot do where several stages "
            "become narrower; leave out the polish, or 'width'."
        )
    require_double(next(model.parameters()).device, "pruning")
    method_of(task).needs(task)
    for group in task.groups:
        criterion = task.preset.criterion_for(group)
        check_output_criterion(criterion, anatomy.num_classes, loss)
    check_reachable(anatomy, task.demand)
    if task.preset.replacement is not None:
        check_replacement(host, task.preset.replacement, set(task.groups))
    if task.preset.rotate:
        host.family.require_rotatable(model)
    refuse_not_finite(model.state_dict(), "the model")
    require_walk(model)
    if task.preset.rotate:
        require_rotatable(host)


def _carried_out(job: Job, data: DataUsed, base: Base | str) -> Result:
    """Prepare, plan, cut and polish, as the task asks."""
    with job.timed("time") if times_count(job.task) else nullcontext():
        job, target = with_target(job)
    source, request, task, images = job.model, job.task.request, job.task, job.images
    method = method_of(task)
    prepared = method.prepare(job)
    plan_for = partial(method.plan, job, prepared)

    def cut(plan: Plan) -> nn.Module:
        return with_tail(job, method.cut(job, prepared, plan))

    if target is None:
        found, plan = None, plan_for()
        smaller = cut(plan)
    else:
        found = cut_to_latency(job.with_model(prepared.dense), task, target, plan_for, cut)
        smaller, plan = found.model, found.plan
    with job.timed("polish") if request.polish else nullcontext():
        report = _polish(smaller, prepared.dense, request, plan, images)
    after = job.family.read(smaller)
    notes = _notes(job.anatomy, after, plan, data, report)
    return Result(
        model=smaller.eval(),
        before=job.family.read(source),
        after=after,
        plan=plan,
        candidates=prepared.candidates,
        task=task,
        data=data,
        seconds=images.seconds,
        base=base,
        dense_logits=logits(source),
        latency=[] if found is None else found.rows,
        latency_rounds=[] if found is None else list(found.rounds),
        latency_best=None if found is None else found.best,
        polish=report,
        notes=[*notes, *lost_hooks_note(source, smaller), *([] if found is None else [found.note])],
    )


def _polish(
    smaller: nn.Module,
    dense: nn.Module,
    request: PruneRequest,
    plan: Plan,
    images: Images,
) -> PolishReport | None:
    if request.polish is None:
        return None

    def on_step(done: int, total: int) -> None:
        images.say("polish", done, total)

    budget = parse_run_length(request.polish)
    kept = [units["width"] for units in plan.units.values() if "width" in units]
    channels = [int(index) for index in kept[0]] if len(kept) == 1 else None  # type: ignore[arg-type]
    loss = images.loss or "kl"
    return polish_(
        smaller, dense, images.batches, budget, request.seed, on_step, channels=channels, loss=loss
    )


def _notes(
    anatomy: Anatomy, after: Anatomy, plan: Plan, data: DataUsed, polish: PolishReport | None
) -> list[str]:
    notes = []
    if data.unreadable:
        notes.append(f"Calibration: {unreadable_note(data.unreadable)}")
    nothing = plan.shapes == anatomy.shapes and not plan.units
    if nothing and anatomy.as_written is None:
        notes.append("The dense model is within the budget already; nothing was removed.")
    if anatomy.as_written is not None:
        read = "token" if after.tail == 1 else f"{after.tail} tokens"
        notes.append(
            f"Exact tail: the head reads the first {read} of {after.tokens} alone; queries, "
            "projection and MLP of the last block are computed for no others, which changes no "
            "output. Percentages are shares of the dense model as it is written."
        )
    if after.stand_ins:
        cost = sum((layer.cost for layer in after.stand_ins), Cost())
        where = ", ".join(layer.id for layer in after.stand_ins)
        notes.append(
            f"Linear layers stand in for what was dropped from {where} on: {cost.macs:,} MACs and "
            f"{cost.params:,} parameters, counted in the totals."
        )
    if polish is not None:
        notes.append(polish_note(polish))
    return notes
