"""Learn masks while training, under a budget: search, project, remove, fine-tune, in one call."""

from typing import Any

from torch import nn

from secateur.data.items import has_labels
from secateur.devices import require_double
from secateur.errors import UserError
from secateur.masks.job import LearnJob
from secateur.masks.phases import Shrunk, run
from secateur.masks.removal.summary import removability
from secateur.masks.request import LearnRequest
from secateur.masks.settings import LearnSettings, phases
from secateur.masks.task import CheckedLearning, check_learning, resolve_learn
from secateur.methods.task import planned
from secateur.methods.to_latency import latency_target
from secateur.models.caches import observable
from secateur.models.hook_points import lost_hooks_note
from secateur.models.host import host_of
from secateur.models.sharing import refuse_shared
from secateur.models.walk_check import require_walk
from secateur.progress import timed
from secateur.request.takes import takes
from secateur.storage.reference import base_or_reason, logits, name_of_reference, reference_of
from secateur.storage.weights import refuse_not_finite
from secateur.training.distillation.cached_logits import LOGITS
from secateur.training.distillation.objectives import require_streams
from secateur.training.distillation.teacher import teacher_for
from secateur.training.images.views import VIEWS, views_of
from secateur.training.judgement import judgement
from secateur.training.machine import training_device
from secateur.training.session import Session, plain_items
from secateur.verbs.evaluate import measure_, require_classifier
from secateur.verbs.learned_result import Learned
from secateur.verbs.load import DataUsed, open_data
from secateur.verbs.result import Result
from secateur.verbs.training_inputs import open_session


@takes(LearnRequest)
def learn(model: nn.Module, images: object, request: LearnRequest) -> Learned:
    """Return a smaller copy of `model` within `budget`, with masks learned with the weights.

    `sharing` is the granularity of the masks, `gates` the gate estimator, `criterion` the order of
    the initial scores, and `loss` compares outputs with those of the teacher (see
    `secateur.prune`). The images are those of `secateur.heal`; `settings.distil` weights their
    labels, if any, and the teacher. The teacher is the given model or a `reference`: any model of
    the same classes, such as the dense original of a model that was pruned before. With a `folder`,
    an interrupted run resumes, unless `restart`. `judge` and `device` are those of `secateur.heal`.
    `on_note` receives, before training, the units that the granularity can remove. An invalid
    request raises
    UserError before training begins.
    """
    return learn_checked(model, images, check_learning(request))


def learn_checked(model: nn.Module, images: object, asked: CheckedLearning) -> Learned:
    """`learn` for a request that was checked before the model was opened."""
    request, settings, progress = asked.request, asked.settings, asked.request.progress
    host_of(model)  # Raises, before the model is looked into.
    device = training_device(next(model.parameters()).device, request.device)
    require_double(device, "learning masks")
    refuse_not_finite(model.state_dict(), "the model")
    host = host_of(observable(model))
    task = resolve_learn(asked, host)
    host = planned(host, task.task)
    refuse_shared(host, task.task.groups)
    require_walk(host.model)
    if request.eval_images is not None:
        require_classifier(model)
    scored, seen = None, list[str]()
    if request.eval_images is not None:
        scored, own = open_data(model, request.eval_images)
        seen = [f"Evaluation: {note}" for note in own.notes()]
    session, used, notes = _open(model, images, settings, device=device, **request.session())
    reference = request.reference
    teaches = None if reference is None else reference_of(reference)
    if teaches is not None:
        require_streams(teacher_for(model, teaches), settings.distil)
    before = removability(task.sharing, task.gates, host.anatomy, task.task.limits)
    if request.on_note is not None:
        request.on_note(before.text())
    job = LearnJob(
        host.model,
        host.family,
        host.anatomy,
        task=task,
        session=session,
        phases=phases(settings, len(plain_items(session.train))),
        reference=teaches,
        target=latency_target(host, task.task, progress),
    )
    with session.alone():
        dense, shrunk = run(job)
    result = _result(job, model, dense, shrunk, used)
    result.notes = [*notes, *seen, before.text(), *result.notes]
    if (tuned := job.reports.get("tune")) is not None:
        judged = judgement(tuned, used.source, used.fingerprint, {}, request.judge, "train")
        result.notes += [judged.note()] if judged is not None and judged.worse else []
    if scored is not None or request.latency:
        with timed(job.seconds, "measure"):
            missing = request.latency and not result.latency
            measure_(result, dense, scored, latency=missing, progress=progress)
    return Learned(
        result=result,
        task=task,
        reference=name_of_reference(reference),
        removability=before,
        searched=shrunk.searched,
        compression=shrunk.kept,
        phases=job.reports,
    )


def _open(
    model: nn.Module, images: object, settings: LearnSettings, **given: Any
) -> tuple[Session, DataUsed, list[str]]:
    """The session, see `open_session`; UserError where labels are needed and missing."""
    required = settings.warmup_share > 0 or not settings.distil.logit_weight
    session, used, notes = open_session(
        model,
        images,
        seed=settings.seed,
        held_out=settings.held_out,
        labels=required or settings.distil.label_weight > 0,
        required=required,
        **given,
    )
    if not has_labels(session.train):
        notes.append("The images have no labels: the smaller model learned from the dense one.")
    if used.images < 2:
        raise UserError(f"{used.images} images are too few to learn from; give more.")
    if settings.distil.answers is not None:
        views_of(session.train, settings, LOGITS)
    if settings.kept_views is not None:
        views_of(session.train, settings, VIEWS)
    return session, used, notes


def _result(
    job: LearnJob, model: nn.Module, dense: nn.Module, shrunk: Shrunk, used: DataUsed
) -> Result:
    """The run as a result of `prune`."""
    found = shrunk.timed
    return Result(
        model=shrunk.model,
        before=job.family.read(model),
        after=job.family.read(shrunk.model),
        plan=shrunk.plan,
        candidates=[],
        task=job.task.task,
        data=used,
        seconds=job.seconds,
        base=base_or_reason(model),
        dense_logits=logits(dense),
        latency=[] if found is None else found.rows,
        latency_rounds=[] if found is None else list(found.rounds),
        latency_best=None if found is None else found.best,
        notes=[*_claims(shrunk), *lost_hooks_note(model, shrunk.model)],
    )


def _claims(shrunk: Shrunk) -> list[str]:
    """Masked beside removed parameters."""
    own, kept = shrunk.searched, shrunk.kept
    found = [
        f"Masked: {kept.masked_percent:.1f} % of the parameters; removed: "
        f"{kept.removed_percent:.1f} %. At the end of the search, before the projection onto the "
        f"budget: {own.masked_percent:.1f} % masked, {own.removed_percent:.1f} % removable."
    ]
    if kept.masked.params < kept.left.params:
        held = kept.left.params - kept.masked.params
        found.append(
            f"{held:,} masked parameters could not be removed; they stayed in the model with "
            "weights of zero and took part in the fine-tuning."
        )
    return found + ([] if shrunk.timed is None else [shrunk.timed.note])
