"""What an analysis observes, and what the criteria say about whole branches from it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.criteria import criteria, score
from secateur.criteria.registry import Criterion, Question
from secateur.data.batches import Batch, Batches
from secateur.errors import UserError
from secateur.models.family import Family
from secateur.models.types import ALL_GROUPS, Anatomy
from secateur.progress import Progress
from secateur.statistics import Evidence, evidence_kinds, observe

NEEDS = {
    "attention_moments",
    "context_moments",
    "hidden_moments",
    "branch_similarity",
    "stream_similarity",
}
GRADIENT_IMAGES = 64
"""Images of the pass that also runs back, for criteria that need gradients."""
GRADIENT_BATCH = 8
"""Images at a time in that pass, which must keep activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Evidence of the forward pass and, where some criterion wants it, of the backward pass."""

    forward: Evidence
    backward: Evidence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one criterion says about every branch it can score."""

    name: str
    title: str
    worth: dict[str, float]


def branch_criteria(anatomy: Anatomy) -> list[Criterion]:
    """The criteria that score whole branches from sums of one pass.

    Those that remove branches themselves would only repeat what an analysis measures; without
    classes there is no loss, so no gradient.
    """
    return [
        each
        for _, each in criteria.items()
        if "branch" in each.needs
        and not any(_experiments(kind) for kind in each.needs["branch"])
        and (anatomy.num_classes > 0 or not _has_gradient(each))
    ]


def observe_all(
    model: nn.Module,
    anatomy: Anatomy,
    batches: Batches,
    chosen: list[Criterion],
    progress: Progress | None,
) -> Observed:
    """One pass over all images and, if a criterion needs gradients, one over some of them."""
    needs = {kind for each in chosen for kind in each.needs["branch"]}
    back = {kind for kind in needs if evidence_kinds.get(kind).gradient}

    def seen(done: int) -> None:
        if progress is not None:
            progress("observe", done, batches.images)

    # WHY: whatever keeps images on the way keeps them from the last pass over all.
    backward = observe(model, some(batches), back) if back else None
    forward = observe(model, batches, (needs - back) | NEEDS, on_batch=seen)
    return Observed(forward=forward, backward=backward)


def some(batches: Batches) -> Batches:
    """The first `GRADIENT_IMAGES` images, few at a time."""
    count = min(GRADIENT_IMAGES, batches.images)

    def start() -> Iterator[Batch]:
        left = count
        for batch in batches:
            labels = batch.labels_B
            for first in range(0, min(left, len(batch.images_BCHW)), GRADIENT_BATCH):
                part = slice(first, min(first + GRADIENT_BATCH, left))
                images = batch.images_BCHW[part]
                yield Batch(images, None if labels is None else labels[part])
            left -= min(left, len(batch.images_BCHW))
            if left == 0:
                return

    steps = -(-count // GRADIENT_BATCH)
    return replace(batches, images=count, _count=steps, _start=start, _every=None)


def score_branches(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    chosen: list[Criterion],
    observed: Observed,
    seed: int,
) -> tuple[list[Score], list[str]]:
    """What every criterion says about every branch, and a note on each that could not."""
    found: list[Score] = []
    notes: list[str] = []
    for each in chosen:
        try:
            worth = _worth(model, family, anatomy, each, observed, seed)
        except UserError as error:
            notes.append(f"Criterion '{each.name}' is left out: {error}")
            continue
        found.append(Score(name=each.name, title=each.title, worth=worth))
    return found, notes


def _worth(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    each: Criterion,
    observed: Observed,
    seed: int,
) -> dict[str, float]:
    evidence = observed.forward
    if _has_gradient(each) and observed.backward is not None:
        evidence = observed.backward
    worth = {}
    for number, branch in enumerate(anatomy.branches):
        sums = observed.forward.about(branch.id)
        if observed.backward is not None:
            sums = sums | observed.backward.about(branch.id)
        question = Question(
            group="branch",
            owner=branch.id,
            weights=family.weights(model, branch),
            sums=sums,
            images=evidence.images,
            seed=seed * 100_003 + number * 7 + ALL_GROUPS.index("branch"),
        )
        with torch.no_grad():
            worth[branch.id] = float(score(each, question))
    return worth


def _has_gradient(each: Criterion) -> bool:
    return any(evidence_kinds.get(kind).gradient for kind in each.needs["branch"])


def _experiments(kind: str) -> bool:
    """Whether a kind of evidence comes from running the model without some of its layers."""
    return getattr(evidence_kinds.get(kind), "trial", None) is not None
