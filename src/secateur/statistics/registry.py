"""Kinds of statistic: each names its sites in a branch and adds their tensors to running sums."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from secateur.data.batches import Batch
from secateur.registry import Registry
from secateur.statistics.divergence import LossName

Sums = dict[str, Tensor]
Seen = Mapping[str, Tensor]
Update = Callable[[Sums, Seen], None]
Trial = Callable[[Callable[[str], Sums], nn.Module, Batch, LossName], None]
"""Called as trial(sums of an owner, model, batch, loss of the outputs): experiments beyond one
forward pass."""
Scope = Literal["attention", "mlp", "branch", "block", "stream", "model"]


def _nothing(_sums: Sums, _seen: Seen) -> None:
    """The update of kinds that do not look at passing tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsKind:
    """One kind of statistic, collected only if a criterion or a repair names it.

    `update(sums, seen)` receives the canonical tensors of one branch (or block) for one batch;
    with `gradient`, each site's tensor is accompanied by `<site>.grad`, the gradient of the loss
    summed over the batch. `covers` names kinds whose sums this kind contains.
    A kind of scope `model` has a `trial` in place of the update, which receives the model and a
    batch and runs it in other ways, such as without one of its layers.
    The scope `stream` receives the residual stream of a batch at all boundaries of blocks, at a
    few tokens: `points` (number of boundaries), `<i>.class` (B, 1, D) and `<i>.patches`
    (B, T, D), where they exist; its one owner is `STREAM`.
    """

    name: str
    scope: Scope
    sites: tuple[str, ...]
    update: Update = _nothing
    trial: Trial | None = None
    gradient: bool = False
    covers: tuple[str, ...] = ()


STREAM = "stream"
"""The owner of what is known about the stream as a whole."""

statistics_kinds: Registry[StatisticsKind] = Registry(
    "kind of evidence", "secateur.statistics.kinds"
)


def statistics_kind(
    name: str,
    *,
    scope: Scope,
    sites: tuple[str, ...],
    gradient: bool = False,
    covers: tuple[str, ...] = (),
) -> Callable[[Update], Update]:
    """Register an update function as a kind of statistic."""

    def file(update: Update) -> Update:
        kind = StatisticsKind(
            name=name, scope=scope, sites=sites, update=update, gradient=gradient, covers=covers
        )
        statistics_kinds.register(name)(kind)
        return update

    return file


def statistics_trial(name: str) -> Callable[[Trial], Trial]:
    """Register a function that runs the model in other ways as a kind of statistic."""

    def file(trial: Trial) -> Trial:
        kind = StatisticsKind(name=name, scope="model", sites=(), trial=trial)
        statistics_kinds.register(name)(kind)
        return trial

    return file


def add_(sums: Sums, key: str, value: Tensor) -> None:
    """Add `value` to a running sum, in at least fp32."""
    value = value.detach()
    if value.dtype.itemsize < 4:
        value = value.float()
    if key in sums:
        sums[key] += value
    else:
        sums[key] = value.clone()


def chosen_kinds(needs: Iterable[str]) -> list[StatisticsKind]:
    """The kinds to collect for `needs`, sorted, without those that another one covers."""
    kinds = [statistics_kinds.get(name) for name in sorted(set(needs))]
    covered = {name for kind in kinds for name in kind.covers}
    return [kind for kind in kinds if kind.name not in covered]
