"""The calibration images of a run, and the passes over them that a method asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from secateur.data.batches import Batches
from secateur.progress import Progress, timed
from secateur.statistics import Statistics, Sums, observe
from secateur.statistics.anchors import anchor_moments
from secateur.statistics.divergence import LossName
from secateur.statistics.gaps import gap_moments


@dataclass(kw_only=True)
class Images:
    """Calibration images that are streamed once per pass.

    `seconds` collects the time of each stage, `loss` compares outputs (None: as suits the model,
    see `secateur.statistics.divergence.loss_for`). A subclass may keep what passes have found,
    where many runs share one dense model (see `secateur.study`).
    """

    batches: Batches
    seconds: dict[str, float] = field(default_factory=dict)
    progress: Progress | None = None
    loss: LossName | None = None

    def observe(
        self, model: nn.Module, needs: set[str], batches: Batches | None = None
    ) -> Statistics:
        """Statistics of `model` from one pass over these images, or over `batches` of them.

        No pass is made where nothing is needed.
        """
        if not needs:
            return Statistics(images=0, tokens=0)
        seen = self.batches if batches is None else batches

        def on_batch(done: int) -> None:
            self.say("observe", done, seen.images)

        with timed(self.seconds, "observe"):
            return observe(model, seen, needs, loss=self.loss, on_batch=on_batch)

    def anchors(self, model: nn.Module, runs: Mapping[str, tuple[str, ...]]) -> dict[str, Sums]:
        """Joint moments for affine replacements; see `secateur.statistics.anchors`."""
        return anchor_moments(model, self.batches, runs)

    def gaps(self, model: nn.Module, runs: Mapping[str, tuple[str, ...]]) -> dict[str, Sums]:
        """Joint moments for linear replacements; see `secateur.statistics.gaps`."""
        return gap_moments(model, self.batches, runs)

    def say(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, done, total)
