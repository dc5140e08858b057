"""One draw of calibration images for all cells of a dense model: what passes find is kept."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from secateur.data.batches import Batches
from secateur.methods.images import Images
from secateur.statistics import Statistics, Sums
from secateur.statistics.anchors import Run, run_moments


@dataclass(kw_only=True)
class SharedImages(Images):
    """Calibration images whose statistics of the model `dense` are collected once.

    `statistics` gives those of the whole study. `known_runs` are joint moments for affine
    replacements: cells that leave out the same layers behind the same kept one share them.
    """

    dense: nn.Module
    statistics: Callable[[], Statistics]
    known_runs: dict[Run, Sums] = field(default_factory=dict)

    def observe(
        self, model: nn.Module, needs: set[str], batches: Batches | None = None
    ) -> Statistics:
        """The study's statistics for the dense model; a pass of its own for any other."""
        if model is self.dense and batches is None:
            return self.statistics()
        return super().observe(model, needs, batches)

    def anchors(self, model: nn.Module, runs: Mapping[str, tuple[str, ...]]) -> dict[str, Sums]:
        """Joint moments of kept layers with the dropped ones behind each."""
        if model is not self.dense:
            return super().anchors(model, runs)
        self.learn_runs(runs.items())
        return {anchor: self.known_runs[anchor, run] for anchor, run in runs.items()}

    def learn_runs(self, runs: Iterable[Run]) -> None:
        """Collect the moments of those runs that are not known yet, in one pass."""
        missing = set(runs) - self.known_runs.keys()
        if missing:
            self.known_runs |= run_moments(self.dense, self.batches, sorted(missing))
