"""The streaming pass: run calibration images once, let every needed kind of statistics add up."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.data.batches import Batch, Batches
from secateur.errors import UserError
from secateur.models.family import Family, family_of
from secateur.models.hook_points import HookPoint, attach, watch_gradient
from secateur.models.types import Anatomy, Branch
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
    family = family_of(model)
    anatomy = family.read(model)
    loss = loss or loss_for(anatomy.num_classes)
    kinds = [kind for kind in chosen_kinds(needs) if kind.trial is None]
    trials = [kind for kind in chosen_kinds(needs) if kind.trial is not None]
    chosen = set(only) if only is not None else {branch.id for branch in anatomy.branches}
    sums: dict[str, dict[str, Sums]] = {k.name: defaultdict(dict) for k in [*kinds, *trials]}
    gradient = any(kind.gradient for kind in kinds)
    generator = None if sample_labels is None else torch.Generator().manual_seed(sample_labels)
    images, mine, at_once = 0, here(), images_at_once(anatomy)
    ears, watched = _Ears(), set[tuple[str, str]]()
    # WHY: what comes behind the last place that is looked at need not be run.
    stops = not gradient and all(kind.scope in ("attention", "mlp", "branch") for kind in kinds)
    with ExitStack() as stack:
        stack.enter_context(frozen(model, gradient=gradient))
        stack.enter_context(true_gradients(model))
        for branch in anatomy.branches:
            if branch.id in chosen:
                hook_points = family.hook_points(model, branch)
                for kind in kinds:
                    if kind.scope in (branch.kind, "branch"):
                        watched.add((branch.id, kind.name))
                        weights_N = (token_weights or {}).get(branch.id)
                        known = known_of(family.weights(model, branch), branch, weights_N)
                        known["prefix"] = torch.tensor(anatomy.prefix_tokens)
                        for handle in _watch(
                            model, branch, hook_points, kind, sums[kind.name], known, ears
                        ):
                            stack.callback(handle.remove)
        for handle in _watch_blocks(model, family, anatomy, kinds, sums, ears):
            stack.callback(handle.remove)
        for kind in kinds:
            if kind.scope == "stream":
                own = sums[kind.name][STREAM]
                for handle in watch_stream(model, anatomy, kind, own, lambda: ears.listening):
                    stack.callback(handle.remove)
        for number, batch in enumerate(batches.every(mine.rank, mine.count)):
            images += len(batch.images_BCHW)
            if generator is not None and loss == "kl":
                skip_labels(generator, batches, anatomy.num_classes, number, mine, at_once)
            elif generator is not None and sample_labels is not None:
                place = number * mine.count + mine.rank
                generator.manual_seed(DRAWS * sample_labels + place)
            if gradient:
                for images_BCHW, labels_B in parts(batch, at_once):
                    run_back(model, images_BCHW, labels_B, generator, loss)
            elif kinds:
                ears.waiting = set(watched) if stops else None
                with suppress(_EnoughError):
                    model(batch.images_BCHW)
            _try(model, batch, trials, sums, ears, loss)
            if on_batch is not None:
                on_batch(min(images * mine.count, batches.images))
    if mine.count > 1:
        sums, images = added_up(sums, images)
    for name, by_owner in sums.items():
        _require_finite(name, by_owner)
    plain = {kind: dict(by_owner) for kind, by_owner in sums.items()}
    return Statistics(images=images, tokens=anatomy.tokens, sums=plain)


class _EnoughError(Exception):
    """Nothing that is still to be run is looked at."""


@dataclass(slots=True)
class _Ears:
    """Whether the hooks listen: not while a kind experiments with the model.

    `waiting` are the branches and kinds that have not yet seen the present batch; None where the
    whole model has to run.
    """

    listening: bool = True
    waiting: set[tuple[str, str]] | None = None

    def heard(self, branch: str, kind: str) -> None:
        """Take one off the list, and end the pass behind the last one."""
        if self.waiting is not None:
            self.waiting.discard((branch, kind))
            if not self.waiting:
                raise _EnoughError


def _try(
    model: nn.Module,
    batch: Batch,
    trials: list[StatisticsKind],
    sums: dict[str, dict[str, Sums]],
    ears: _Ears,
    loss: LossName,
) -> None:
    """Let every kind that experiments with the model do so, unheard by the others."""
    ears.listening = False
    with torch.no_grad():
        for kind in trials:
            if kind.trial is not None:
                kind.trial(sums[kind.name].__getitem__, model, batch, loss)
    ears.listening = True


@contextmanager
def frozen(model: nn.Module, *, gradient: bool = False) -> Iterator[None]:
    """Evaluation mode with weights that take no gradient; everything is put back afterwards."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    model.requires_grad_(False)
    try:
        with torch.set_grad_enabled(gradient):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def _watch(
    model: nn.Module,
    branch: Branch,
    hook_points: dict[str, HookPoint],
    kind: StatisticsKind,
    by_owner: dict[str, Sums],
    known: Mapping[str, Tensor],
    ears: _Ears,
) -> Iterator[RemovableHandle]:
    """Hooks that hand one branch's tensors to a kind as soon as all of them were seen."""
    seen: dict[str, Tensor] = {}

    def see(site: str, x: Tensor, gradient: Tensor | None = None) -> None:
        if not ears.listening:
            return
        seen[site] = x.detach()
        if gradient is not None:
            seen[f"{site}.grad"] = gradient
        if all(name in seen for name in kind.sites):
            kind.update(by_owner[branch.id], {**known, **seen})
            seen.clear()
            ears.heard(branch.id, kind.name)

    for site in kind.sites:
        if kind.gradient:
            yield watch_gradient(model, hook_points[site], partial(see, site))
        else:
            yield attach(model, hook_points[site], partial(see, site))


def _watch_blocks(
    model: nn.Module,
    family: Family,
    anatomy: Anatomy,
    kinds: list[StatisticsKind],
    sums: dict[str, dict[str, Sums]],
    ears: _Ears,
) -> Iterator[RemovableHandle]:
    """Hooks on the stream at the first branch of every block and after its last one."""
    mine = [kind for kind in kinds if kind.scope == "block"]
    if not mine:
        return
    for block in anatomy.blocks:
        if not block.branches:
            continue
        before: dict[str, Tensor] = {}

        def enter(x: Tensor, before: dict[str, Tensor] = before) -> None:
            if ears.listening:
                before["stream"] = x.detach()

        def at_last(x: Tensor, before: dict[str, Tensor] = before) -> None:
            if ears.listening:
                before["last"] = x.detach()

        def leave(x: Tensor, before: dict[str, Tensor] = before, owner: str = block.id) -> None:
            if not ears.listening:
                return
            stream, last = before.pop("stream"), before.pop("last")
            for kind in mine:
                kind.update(
                    sums[kind.name][owner],
                    {"stream": stream, "update": last + x.detach() - stream},
                )

        first, last = (
            family.hook_points(model, anatomy.branch(block.branches[place])) for place in (0, -1)
        )
        yield attach(model, first["stream"], enter)
        yield attach(model, last["stream"], at_last)
        yield attach(model, last["update"], leave)


def _require_finite(kind: str, by_owner: dict[str, Sums]) -> None:
    for owner, values in by_owner.items():
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"{owner} gives values that are not finite on the calibration images "
                    f"({kind}.{name}); check the weights and the preprocessing (--mean, --std)."
                )
