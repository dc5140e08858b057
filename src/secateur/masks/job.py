"""All that a run of learning masks is given: the task, a training session, a teacher."""

from dataclasses import dataclass, field

from torch import nn

from secateur.allocation.target import Target
from secateur.data.batches import Batches, as_batches
from secateur.masks.settings import Phase
from secateur.masks.task import LearnTask
from secateur.models.caches import evaluating
from secateur.models.host import Host
from secateur.statistics import Statistics, observe
from secateur.training.loop import FitReport
from secateur.training.session import Session
from secateur.training.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnJob(Host):
    """A task for a model, which stays as it is; `reports` and `seconds` fill up on the way.

    `reference` teaches, or the dense model itself; `target` is that of a budget in milliseconds.
    """

    task: LearnTask
    session: Session
    phases: dict[Phase, TrainSettings]
    reference: nn.Module | None = None
    target: Target | None = None
    reports: dict[Phase, FitReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def batches(self, model: nn.Module) -> Batches:
        """The training images that give statistics, spread over all of them, unaugmented."""
        chosen = self.session.spread(self.task.settings.observe)
        like = next(model.parameters())
        return as_batches(chosen, 32, 0, like.device, dtype=like.dtype)

    def observe(self, model: nn.Module, needs: set[str]) -> Statistics:
        """Statistics of these images; none where nothing is needed."""
        if not needs:
            return Statistics(images=0, tokens=0)
        batches, progress = self.batches(model), self.session.progress

        def on_batch(done: int) -> None:
            if progress is not None:
                progress("observe", done, batches.images)

        return observe(model, batches, needs, on_batch=on_batch)

    def observe_in_training(self, model: nn.Module, needs: set[str]) -> Statistics:
        """The same in the middle of training: with hard masks and without dropout."""
        with evaluating(model):
            return self.observe(model, needs)
