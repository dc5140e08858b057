"""The dense model on a few probe images, run from any place on with parts changed or left out.

Every result is measured on the whole model. Legend: N tokens, D residual width, C outputs, P probe
images.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.models.caches import shell_of
from secateur.models.host import Host
from secateur.models.outputs import outputs_of
from secateur.models.runner import NO_FILLS, NOTHING, LeftOut, Runner
from secateur.models.types import Branch
from secateur.models.weights import BranchWeights
from secateur.statistics.divergence import Degradation, LossName, blind, degradation, loss_for

AT_ONCE = 32
"""Probe images that run through the model at a time."""


@dataclass(slots=True, kw_only=True)
class ProbeRunner:
    """A dense model with the stream of the probe images before its first step, and its outputs.

    `fills` (D,) stand for branches that are left out. `scratch` shares the dense model's weights
    but for those of branches that are changed. `loss` compares outputs. `steps_run` grows by one
    for every residual step that all probe images go through.
    """

    runner: Runner
    scratch: Host
    start_PND: Tensor
    dense_PC: Tensor
    fills: Mapping[str, Tensor]
    loss: LossName
    steps_run: float
    _moved: bool = False
    _seen: bool = False

    @staticmethod
    @torch.no_grad()
    def of(
        host: Host,
        images_PCHW: Tensor,
        fills: Mapping[str, Tensor] = NO_FILLS,
        loss: LossName | None = None,
    ) -> "ProbeRunner":
        """Embed the probe images and run the dense model on them; `loss` as in `loss_for`."""
        runner = Runner.of(host)
        start_PND = torch.cat([runner.embed(part) for part in images_PCHW.split(AT_ONCE)])
        return ProbeRunner(
            runner=runner,
            scratch=host.with_model(shell_of(host.model)),
            start_PND=start_PND,
            dense_PC=_outputs(runner, start_PND),
            fills=fills,
            loss=loss or loss_for(host.anatomy.num_classes),
            steps_run=len(runner),
        )

    @property
    def names(self) -> list[str]:
        """The ids of the branches."""
        return self.runner.names

    def advanced(self, place: int, stream_PND: Tensor) -> Tensor:
        """The stream after one branch."""
        self.steps_run += 1
        parts = [self.runner.step(place, x_BND) for x_BND in stream_PND.split(AT_ONCE)]
        return torch.cat(parts)

    def without(self, place: int, stream_PND: Tensor) -> Tensor:
        """The stream after the fill of one branch."""
        return self.runner.skip(place, stream_PND, self.fills.get(self.names[place]))

    def changed(self, branch: Branch, weights: BranchWeights, stream_PND: Tensor) -> Tensor:
        """The stream after one branch with other weights."""
        self.steps_run += 1
        self.scratch.assign_(branch, weights)
        after: Tensor = self.scratch.through(branch)(stream_PND)
        return after

    def finish(self, start: int, stream_PND: Tensor, without: Collection[str] = ()) -> Degradation:
        """Run the steps from `start`, all but those left out, and compare with the dense model."""
        self.steps_run += sum(name not in without for name in self.names[start:])
        left_out = LeftOut(without, self.fills)
        return self._compared(_outputs(self.runner, stream_PND, start, left_out))

    @torch.no_grad()
    def with_weights(self, weights: Mapping[str, BranchWeights]) -> Degradation:
        """Compare the model in which several branches have other weights at once."""
        changed = self.runner.with_model(shell_of(self.runner.model))
        for branch in changed.anatomy.branches:
            if branch.id in weights:
                changed.assign_(branch, weights[branch.id])
        self.steps_run += len(self.runner)
        return self._compared(_outputs(Runner.of(changed), self.start_PND))

    def with_model(self, model: nn.Module, images_PCHW: Tensor) -> Degradation:
        """Compare another model on the probe images."""
        parts = [outputs_of(model(part)) for part in images_PCHW.split(AT_ONCE)]
        return self._compared(torch.cat(parts))

    def _compared(self, changed_PC: Tensor) -> Degradation:
        found = degradation(self.dense_PC, changed_PC, self.runner.anatomy.num_classes, self.loss)
        self._seen = self._seen or found.divergence != 0
        self._moved = self._moved or not torch.equal(self.dense_PC, changed_PC)
        return found

    def require_seen(self) -> None:
        """UserError where outputs changed, but every loss so far is 0: it cannot choose."""
        if self._moved and not self._seen:
            raise blind(self.loss)


def _outputs(
    runner: Runner, stream_PND: Tensor, start: int = 0, without: LeftOut = NOTHING
) -> Tensor:
    parts = stream_PND.split(AT_ONCE)
    return torch.cat([runner.finish(x_BND, start, without) for x_BND in parts])
