"""While masks close, the units that stay take over what the others gave, in closed form."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.errors import UserError
from secateur.masks.gates import Gate, Site
from secateur.masks.masks import masks_of
from secateur.models.caches import forget_cached_, shell_of
from secateur.models.host import Host
from secateur.models.types import AttentionShape, Branch
from secateur.statistics import Statistics
from secateur.surgery.take_over import take_over

NEEDS: dict[Site, str] = {"hidden": "hidden_moments", "context": "context_moments"}

Kept = Mapping[str, Tensor]
Observe = Callable[[set[str]], Statistics]


class Takeover:
    """Refits the writers of a model under gates each time that masks change.

    `observe` gives statistics about the model in evaluation mode, whose gates must hold the masks
    from before the change.
    """

    def __init__(self, host: Host, gates: tuple[Gate, ...], observe: Observe) -> None:
        self.host, self.gates, self.observe = host, gates, observe

    @torch.no_grad()
    def __call__(self, before: Kept, after: Kept) -> None:
        """Fold what closes between these kept units into what stays, in place."""
        closing = self._closing(before, after)
        if not closing:
            return
        try:
            statistics = self.observe({NEEDS[site] for _, site in closing})
        except UserError:
            # WHY: values that are not finite end the run in its next pass, which names the step.
            return
        host, shell = self.host, self.host.with_model(shell_of(self.host.model))
        for branch in host.anatomy.branches:
            for site, need in NEEDS.items():
                if (branch.id, site) in closing:
                    live = closing[branch.id, site]
                    sums = statistics.about(branch.id)[need]
                    weights = take_over(host.weights(branch), *live, sums, branch.id)
                    shell.assign_(branch, weights)
        for old, new in zip(host.model.parameters(), shell.model.parameters(), strict=True):
            if old is not new:
                old.copy_(agreed(new))
        forget_cached_(host.model)

    def _closing(self, before: Kept, after: Kept) -> dict[tuple[str, Site], tuple[Tensor, Tensor]]:
        """Masks (U,) before and after, by branch and site, where some close and some stay."""
        found: dict[tuple[str, Site], tuple[Tensor, Tensor]] = {}
        old, new = masks_of(self.gates, before), masks_of(self.gates, after)
        for branch in self.host.anatomy.branches:
            for site in NEEDS:
                if site not in new.get(branch.id, {}):
                    continue
                live = (
                    _of_inputs(old[branch.id][site], branch),
                    _of_inputs(new[branch.id][site], branch),
                )
                if bool((live[0] & ~live[1]).any()) and bool((live[0] & live[1]).any()):
                    found[branch.id, site] = live
        return found


def _of_inputs(mask: Tensor, branch: Branch) -> Tensor:
    """A mask of the writer's inputs (U,): one of whole heads (H, 1) counts for all their dims."""
    shape = branch.shape
    if isinstance(shape, AttentionShape):
        mask = mask.expand(shape.heads, shape.vo)
    return mask.flatten()


def agreed(weight: Tensor) -> Tensor:
    """The same in all processes, whose arithmetic may differ in the last bits."""
    from accelerate import PartialState
    from accelerate.utils import broadcast

    if PartialState().num_processes == 1:
        return weight
    agreed: Tensor = broadcast(weight.contiguous())
    return agreed
