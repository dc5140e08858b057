"""What an analysis observes, and what the criteria say about whole branches from it."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import Criterion
from secateur.data.batches import Batches
from secateur.data.split import first_images
from secateur.errors import UserError
from secateur.models.host import Host
from secateur.models.types import Anatomy
from secateur.progress import Progress
from secateur.statistics import Statistics, observe, statistics_kinds
from secateur.statistics.divergence import LossName

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
    """Statistics of the forward pass and, where some criterion wants it, of the backward pass."""

    forward: Statistics
    backward: Statistics | None

    def for_criterion(self, which: Criterion) -> Statistics:
        """Both together; of the images, the number in the pass that the criterion needs."""
        if self.backward is None:
            return self.forward
        of = self.backward if _has_gradient(which) else self.forward
        return replace(of, sums=self.forward.sums | self.backward.sums)


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
    batches: Batches,
    chosen: list[Criterion],
    progress: Progress | None,
    loss: LossName | None = None,
) -> Observed:
    """One pass over all images and, if a criterion needs gradients, one over some of them."""
    needs = {kind for each in chosen for kind in each.needs["branch"]}
    back = {kind for kind in needs if statistics_kinds.get(kind).gradient}

    def seen(done: int) -> None:
        if progress is not None:
            progress("observe", done, batches.images)

    # WHY: whatever keeps images on the way keeps them from the last pass over all.
    few = first_images(batches, GRADIENT_IMAGES, GRADIENT_BATCH)
    backward = observe(model, few, back, loss=loss) if back else None
    forward = observe(model, batches, (needs - back) | NEEDS, loss=loss, on_batch=seen)
    return Observed(forward=forward, backward=backward)


def score_branches(
    host: Host, chosen: list[Criterion], observed: Observed, seed: int
) -> tuple[list[Score], list[str]]:
    """What every criterion says about every branch, and a note on each that could not."""
    found: list[Score] = []
    notes: list[str] = []
    for each in chosen:
        try:
            worth = _worth(host, each, observed, seed)
        except UserError as error:
            notes.append(f"Criterion '{each.name}' is left out: {error}")
            continue
        found.append(Score(name=each.name, title=each.title, worth=worth))
    return found, notes


@torch.no_grad()
def _worth(host: Host, each: Criterion, observed: Observed, seed: int) -> dict[str, float]:
    statistics = observed.for_criterion(each)
    names = [branch.id for branch in host.anatomy.branches]
    return {
        name: float(ask(each, host, "branch", name, statistics, seed=seed, settings=None))
        for name in names
    }


def _has_gradient(each: Criterion) -> bool:
    return any(statistics_kinds.get(kind).gradient for kind in each.needs["branch"])


def _experiments(kind: str) -> bool:
    """Whether a kind of statistics comes from running the model without some of its layers."""
    return getattr(statistics_kinds.get(kind), "trial", None) is not None
