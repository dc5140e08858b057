"""The streaming pass: run calibration images once, let every needed kind of statistics add up."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.data.batches import Batch, Batches
from secateur.errors import UserError
from secateur.models.caches import evaluating
from secateur.models.hook_points import HookPoint, attach, watch_gradient
from secateur.models.host import Host, host_of
from secateur.models.types import Block, Branch
from secateur.statistics.backward import (
    images_at_once,
    parts,
    run_back,
    skip_labels,
    true_gradients,
)
from secateur.statistics.divergence import LossName, loss_for
from secateur.statistics.known import known_of
from secateur.statistics.processes import added_up, here
from secateur.statistics.registry import STREAM, StatisticsKind, Sums, chosen_kinds
from secateur.statistics.stream import watch_stream

DRAWS = 1_000_003
"""Seeds of the draws of different passes are this far apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Sums by kind of statistics and by branch (or block) id, over `images` images."""

    images: int
    tokens: int
    sums: dict[str, dict[str, Sums]] = field(default_factory=dict)

    def of(self, kind: str, owner: str) -> Sums:
        """The sums of one kind for one branch or block."""
        return self.sums[kind][owner]

    def about(self, owner: str) -> dict[str, Sums]:
        """All sums for one branch or block, by kind."""
        return {kind: by_owner[owner] for kind, by_owner in self.sums.items() if owner in by_owner}

    def plus(self, other: "Statistics") -> "Statistics":
        """Both together, as if one pass had seen the images of both; for equal kinds."""
        sums = {
            kind: {
                owner: {key: value + other.sums[kind][owner][key] for key, value in own.items()}
                for owner, own in by_owner.items()
            }
            for kind, by_owner in self.sums.items()
        }
        return replace(self, images=self.images + other.images, sums=sums)


def observe(
    model: nn.Module,
    batches: Batches,
    needs: Iterable[str],
    *,
    only: Iterable[str] | None = None,
    token_weights: Mapping[str, Tensor] | None = None,
    sample_labels: int | None = None,
    loss: LossName | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """Collect the kinds of statistics named in `needs` in one pass over `batches`.

    Memory does not grow with the number of images. `only` limits the pass to some branches.
    `token_weights` (N,) by branch weigh the tokens in moments. Gradient kinds use the labels, or
    the model's own predictions where there are none; with the seed `sample_labels`, labels drawn
    from the model's own distribution, whose gradients give the Fisher metric. `loss` is how
    outputs are compared, by default as suits their number (see `divergence.loss_for`).
    `on_batch(images)` reports progress. Where a launcher started several processes, they share the
    batches and all get the sums of all (see `processes.py`). Raises UserError when activations are
    not finite.
    """
    host = host_of(model)
    anatomy = host.anatomy
    loss = loss or loss_for(anatomy.num_classes)
    chosen = set(only) if only is not None else {branch.id for branch in anatomy.branches}
    generator = None if sample_labels is None else torch.Generator().manual_seed(sample_labels)
    images, mine = 0, here()
    run = _Pass(host, chosen_kinds(needs), loss)
    with ExitStack() as stack:
        stack.enter_context(frozen(model, gradient=run.gradient))
        stack.enter_context(true_gradients(model))
        for handle in run.hooks(chosen, token_weights or {}):
            stack.callback(handle.remove)
        for number, batch in enumerate(batches.every(mine.rank, mine.count)):
            images += len(batch.images_BCHW)
            if generator is not None and loss == "kl":
                at_once = images_at_once(anatomy)
                skip_labels(generator, batches, anatomy.num_classes, number, mine, at_once)
            elif generator is not None and sample_labels is not None:
                place = number * mine.count + mine.rank
                generator.manual_seed(DRAWS * sample_labels + place)
            run.look(batch, generator)
            if on_batch is not None:
                on_batch(min(images * mine.count, batches.images))
    sums = run.sums
    if mine.count > 1:
        sums, images = added_up(sums, images)
    for name, by_owner in sums.items():
        _require_finite(name, by_owner)
    plain = {kind: dict(by_owner) for kind, by_owner in sums.items()}
    return Statistics(images=images, tokens=anatomy.tokens, sums=plain)


class _EnoughError(Exception):
    """Nothing that is still to be run is looked at."""


class _Pass:
    """The hooks of one pass and what they add up; they do not listen while a kind experiments.

    `waiting` are the branches and kinds that have not yet seen the present batch; None where the
    whole model has to run.
    """

    def __init__(self, host: Host, kinds: list[StatisticsKind], loss: LossName) -> None:
        self.host, self.loss = host, loss
        self.kinds = [kind for kind in kinds if kind.trial is None]
        self.trials = [kind for kind in kinds if kind.trial is not None]
        self.sums: dict[str, dict[str, Sums]] = {kind.name: defaultdict(dict) for kind in kinds}
        self.gradient = any(kind.gradient for kind in kinds)
        self.watched: set[tuple[str, str]] = set()
        self.waiting: set[tuple[str, str]] | None = None
        self.listening = True

    def look(self, batch: Batch, generator: torch.Generator | None) -> None:
        """Run the model on a batch, also back if a kind needs gradients; then the experiments."""
        model = self.host.model
        if self.gradient:
            for images_BCHW, labels_B in parts(batch, images_at_once(self.host.anatomy)):
                run_back(model, images_BCHW, labels_B, generator, self.loss)
        elif self.kinds:
            # WHY: what comes behind the last place that is looked at need not be run.
            stops = all(kind.scope in ("attention", "mlp", "branch") for kind in self.kinds)
            self.waiting = set(self.watched) if stops else None
            with suppress(_EnoughError):
                model(batch.images_BCHW)
        self.listening = False
        with torch.no_grad():
            for kind in self.trials:
                if kind.trial is not None:
                    kind.trial(self.sums[kind.name].__getitem__, model, batch, self.loss)
        self.listening = True

    def hooks(
        self, chosen: Collection[str], token_weights: Mapping[str, Tensor]
    ) -> Iterator[RemovableHandle]:
        """Hooks for every kind at the chosen branches, at all blocks and on the stream."""
        model, anatomy = self.host.model, self.host.anatomy
        for branch in anatomy.branches:
            own = [kind for kind in self.kinds if kind.scope in (branch.kind, "branch")]
            if own and branch.id in chosen:
                known = self._known(branch, token_weights)
                hook_points = self.host.hook_points(branch)
                for kind in own:
                    self.watched.add((branch.id, kind.name))
                    yield from self._at_branch(branch, hook_points, kind, known)
        if any(kind.scope == "block" for kind in self.kinds):
            for block in anatomy.blocks:
                if block.branches:
                    yield from self._at_block(block)
        for kind in self.kinds:
            if kind.scope == "stream":
                sums = self.sums[kind.name][STREAM]
                yield from watch_stream(model, anatomy, kind, sums, lambda: self.listening)

    def _known(self, branch: Branch, token_weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a kind may need of a branch beside its tensors; see `known.py`."""
        known = known_of(self.host.weights(branch), branch, token_weights.get(branch.id))
        return {"prefix": torch.tensor(self.host.anatomy.prefix_tokens), **known}

    def _at_branch(
        self,
        branch: Branch,
        hook_points: Mapping[str, HookPoint],
        kind: StatisticsKind,
        known: Mapping[str, Tensor],
    ) -> Iterator[RemovableHandle]:
        """Hooks that hand one branch's tensors to a kind as soon as all of them were seen."""
        seen: dict[str, Tensor] = {}

        def see(site: str, x: Tensor, gradient: Tensor | None = None) -> None:
            if not self.listening:
                return
            seen[site] = x.detach()
            if gradient is not None:
                seen[f"{site}.grad"] = gradient
            if all(name in seen for name in kind.sites):
                kind.update(self.sums[kind.name][branch.id], {**known, **seen})
                seen.clear()
                self._heard(branch.id, kind.name)

        watch = watch_gradient if kind.gradient else attach
        for site in kind.sites:
            yield watch(self.host.model, hook_points[site], partial(see, site))

    def _heard(self, branch: str, kind: str) -> None:
        """Take one off the list, and end the pass behind the last one."""
        if self.waiting is not None:
            self.waiting.discard((branch, kind))
            if not self.waiting:
                raise _EnoughError

    def _at_block(self, block: Block) -> Iterator[RemovableHandle]:
        """Hooks on the stream at the first branch of a block and after its last one."""
        seen: dict[str, Tensor] = {}

        def see(name: str, x: Tensor) -> None:
            if self.listening:
                seen[name] = x.detach()

        def leave(x: Tensor) -> None:
            if not self.listening:
                return
            stream, last = seen.pop("stream"), seen.pop("last")
            tensors = {"stream": stream, "update": last + x.detach() - stream}
            for kind in self.kinds:
                if kind.scope == "block":
                    kind.update(self.sums[kind.name][block.id], tensors)

        model, branch = self.host.model, self.host.anatomy.branch
        first, last = (self.host.hook_points(branch(block.branches[at])) for at in (0, -1))
        yield attach(model, first["stream"], partial(see, "stream"))
        yield attach(model, last["stream"], partial(see, "last"))
        yield attach(model, last["update"], leave)


@contextmanager
def frozen(model: nn.Module, *, gradient: bool = False) -> Iterator[None]:
    """Evaluation mode with weights that take no gradient; everything is put back afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with evaluating(model), torch.set_grad_enabled(gradient):
        try:
            model.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


def _require_finite(kind: str, by_owner: dict[str, Sums]) -> None:
    for owner, values in by_owner.items():
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"{owner} gives values that are not finite on the calibration images "
                    f"({kind}.{name}); check the weights and the preprocessing (--mean, --std)."
                )
