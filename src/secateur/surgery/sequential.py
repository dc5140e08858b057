"""Cut front to back: every branch is reduced with statistics of the already cut prefix.

Two streams run side by side: that of the dense model and that of the model being cut. At each
branch the cut model's writer is refitted towards a blend of two targets (see
`secateur.surgery.solve`), chosen on images held out from the fit.
Legend: B batch, N tokens, D residual width, U inputs of a writer.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from secateur.data.batches import Batches
from secateur.data.split import HOLD_EVERY, is_held
from secateur.models.caches import own_
from secateur.models.host import Host, host_of
from secateur.models.types import AttentionShape, Branch, MlpShape, Shapes
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.statistics import Sums, statistics_kinds
from secateur.statistics.kinds.moments import add_moments_
from secateur.statistics.known import known_of
from secateur.statistics.moments import Moments, moments
from secateur.statistics.registry import add_
from secateur.surgery.reduce import (
    RefitSettings,
    reduce_heads,
    reduce_hidden,
    reduce_query_key,
    reduce_value,
)
from secateur.surgery.replace import runs_of
from secateur.surgery.streams import Streams, advance, advance_, advance_seen, embed_all


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialSettings:
    """`token_weights[branch]` (N,) says how much each position matters there (None: equally);
    `metrics[branch]` (D, D) whitens a branch's output when units are ranked. With `affine`, a
    branch right before dropped ones is refitted to the dense stream behind them. A writer without
    bias gets one, unless `new_biases` is off."""

    refit: RefitSettings = field(default_factory=RefitSettings)
    token_weights: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    refit_unchanged: bool = True
    affine: bool = False
    new_biases: bool = True


@torch.no_grad()
def cut_front_to_back_(
    model: nn.Module,
    dense: nn.Module,
    shapes: Shapes,
    batches: Batches,
    settings: SequentialSettings,
    on_branch: Callable[[int, int], None] | None = None,
) -> None:
    """Shrink `model`, a copy or shell of `dense`, in place to `shapes`.

    Branches after the first cut that keep their shape are refitted too, unless the settings say
    otherwise. A dropped branch leaves the mean of what the stream lacks there; with `affine` the
    writer before it has learned the best affine map to what it gave, as far as that generalises.
    """
    host = host_of(model)
    anatomy, source = host.anatomy, host.with_model(dense)
    run = _Run(host, source, settings)
    run.dense_streams = _enough_batches(embed_all(source, batches))
    run.streams = list(run.dense_streams)
    constants: list[tuple[Branch, Tensor]] = []
    behind = runs_of(anatomy, shapes) if settings.affine else {}
    stood_in: set[str] = set()
    touched = False
    for number, branch in enumerate(anatomy.branches):
        shape = shapes.get(branch.id)
        # WHY: in place, so that no more than one stream per model is held.
        if branch.id not in stood_in:
            advance_(source, branch, run.dense_streams)
        for dropped in behind.get(branch.id, ()):
            advance_(source, anatomy.branch(dropped), run.dense_streams)
            stood_in.add(dropped)
            touched = True
        if shape is None:
            constants.append((branch, _skip(run, branch)))
            touched = True
        elif shape != branch.shape or (touched and settings.refit_unchanged):
            _reduce(run, branch, shape)
            advance_(host, branch, run.streams)
            touched = True
        elif touched:
            advance_(host, branch, run.streams)
        else:
            run.streams = list(run.dense_streams)
        if on_branch is not None:
            on_branch(number + 1, len(anatomy.branches))
    own_(model, dense)
    host.family.drop_(model, {b.id for b in anatomy.branches if shapes.get(b.id) is None})
    for branch, constant_D in constants:
        host.family.add_constant_(model, branch, constant_D)


@torch.no_grad()
def refit_front_to_back_(
    model: nn.Module,
    dense: nn.Module,
    batches: Batches,
    settings: SequentialSettings,
    channels: Mapping[str, Tensor] | None = None,
) -> None:
    """Refit every writer of `model`, which was cut out of a model like `dense`, in place.

    Shapes stay; the stream follows that of `dense` as closely as the writers allow, each fitted
    behind those that were refitted before it. `channels[stream]` (D,) are those of the dense stream
    that a narrower one kept.
    """
    host, source = host_of(model), host_of(dense)
    left = {branch.id: branch for branch in host.anatomy.branches}
    run = _Run(host, source, settings)
    run.dense_streams = _enough_batches(embed_all(source, batches))
    run.streams = _enough_batches(embed_all(host, batches))
    for dense_branch in source.anatomy.branches:
        advance_(source, dense_branch, run.dense_streams)
        if (branch := left.get(dense_branch.id)) is None:
            continue
        stream = source.anatomy.stream_of(dense_branch)
        run.channels_D = None if stream is None else (channels or {}).get(stream.id)
        _reduce(run, branch, branch.shape)
        advance_(host, branch, run.streams)


def _enough_batches(streams: Streams) -> Streams:
    """Few large batches split up, so that there is one to hold out."""
    if len(streams) >= HOLD_EVERY:
        return streams
    whole_BND = torch.cat(streams)
    return list(whole_BND.split(max(1, -(-whole_BND.shape[0] // HOLD_EVERY))))


@dataclass(slots=True)
class _Run:
    """The streams of a cut in progress: of the model before the branch at hand, of the dense model
    after it. `channels_D` are those of the dense stream that the model has, None for all."""

    host: Host
    dense: Host
    settings: SequentialSettings
    streams: Streams = field(default_factory=list)
    dense_streams: Streams = field(default_factory=list)
    channels_D: Tensor | None = None

    def aims(self) -> Iterator[Tensor]:
        """What the stream should be behind the branch at hand, (B, N, D) batch by batch."""
        for x_BND in self.dense_streams:
            yield x_BND if self.channels_D is None else x_BND[..., self.channels_D]

    def weights_N(self, branch: Branch) -> Tensor | None:
        weights_N = self.settings.token_weights.get(branch.id)
        return None if weights_N is None else weights_N.float()


def _skip(run: _Run, branch: Branch) -> Tensor:
    """Replace a branch by the mean of what the stream lacks after it; returns that mean (D,)."""
    weights_N = run.weights_N(branch)
    total = torch.zeros(branch.width, dtype=torch.float64)
    count = 0.0
    for place, x_BND in enumerate(run.streams):
        run.streams[place] = run.host.family.arrive(run.host.model, branch, x_BND)
    for x_BND, dense_BND in zip(run.streams, run.dense_streams, strict=True):
        lack_BND = dense_BND - x_BND
        if weights_N is not None:
            lack_BND = lack_BND * weights_N[:, None]
            count += float(weights_N.sum()) * lack_BND.shape[0]
        else:
            count += lack_BND.shape[0] * lack_BND.shape[1]
        total += lack_BND.sum((0, 1), dtype=torch.float64).cpu()
    constant_D = (total / count).to(run.streams[0].device)
    for place, x_BND in enumerate(run.streams):
        run.streams[place] = x_BND + constant_D.to(x_BND)
    return constant_D


def _reduce(run: _Run, branch: Branch, shape: AttentionShape | MlpShape) -> None:
    """Give the branch its new shape with weights fitted to the stream at hand."""
    settings = replace(run.settings.refit, metric_DD=run.settings.metrics.get(branch.id))
    weights = run.host.weights(branch)
    moved = False
    if isinstance(weights, AttentionWeights) and isinstance(shape, AttentionShape):
        if shape.heads < weights.shape.heads:
            weights = reduce_heads(weights, shape.heads, _joint(run, branch)[0], settings)
            run.host.assign_(branch, weights)
            moved = True
        if shape.qk < weights.shape.qk:
            sums = _attention_sums(run, branch, weights)
            count = sums["count"]
            weights = reduce_query_key(
                weights, shape.qk, sums["q_gram"] / count, sums["k_gram"] / count
            )
            run.host.assign_(branch, weights)
            moved = True
    bias_D = weights.b2_D if isinstance(weights, MlpWeights) else weights.ob_D
    biased = bias_D is not None or run.settings.new_biases
    fit, held = _joint(run, branch, moved=moved, centred=biased)
    if isinstance(weights, AttentionWeights) and isinstance(shape, AttentionShape):
        smaller = reduce_value(weights, shape.vo, fit, held, settings, branch.id)
        smaller = smaller if biased else replace(smaller, ob_D=None)
        run.host.assign_(branch, smaller)
    elif isinstance(weights, MlpWeights) and isinstance(shape, MlpShape):
        less = reduce_hidden(weights, shape.hidden, fit, held, settings, branch.id)
        less = less if biased else replace(less, b2_D=None)
        run.host.assign_(branch, less)


def _attention_sums(run: _Run, branch: Branch, weights: AttentionWeights) -> Sums:
    """Query and key moments as the softmax weighs them, on the present stream."""
    sums: Sums = {}
    kind = statistics_kinds.get("attention_moments")
    extra = known_of(weights, branch, run.weights_N(branch))
    for _, seen in advance_seen(run.host, branch, run.streams, ("query", "key")):
        kind.update(sums, {**seen, **extra})
    return sums


def _joint(
    run: _Run, branch: Branch, *, moved: bool = False, centred: bool = True
) -> tuple[Moments, Moments | None]:
    """Joint moments of the writer's inputs and of what local and stream targets ask beyond it.

    `moved` says that the branch was changed before its writer, so that the local target differs
    from what the writer now gives; moments are `centred` for a writer with bias.
    """
    site = "context" if branch.kind == "attention" else "hidden"
    scale_D = run.host.family.writer_scale(run.host.model, branch)
    linear = run.host.writes_linearly(branch)
    held_sums: Sums = {}
    fit_sums: Sums = {}
    local = advance(run.dense, branch, run.streams) if moved else None
    now = advance_seen(run.host, branch, run.streams, (site,))
    pairs = zip(now, run.aims(), strict=True)
    for number, ((after_BND, seen), dense_BND) in enumerate(pairs):
        # WHY: held-out batches choose blend and ridge.
        sums = held_sums if is_held(number, len(run.streams)) else fit_sums
        x_BNU = seen[site].flatten(2)
        if branch.windows is not None:
            x_BNU = branch.windows.in_order(x_BNU)
        weights_N = run.weights_N(branch)
        add_moments_(sums, x_BNU, weights_N)
        if linear:
            target_BND = next(local) if local is not None else after_BND
            pair = (target_BND - after_BND, dense_BND - after_BND)
            _add_corrections_(sums, x_BNU, pair, weights_N, scale_D)
        elif local is not None:
            next(local)
    fit = moments(fit_sums, centred=centred)
    return fit, moments(held_sums, centred=centred) if held_sums else None


def _add_corrections_(
    sums: Sums,
    x_BNU: Tensor,
    pair: tuple[Tensor, Tensor],
    weights_N: Tensor | None,
    scale_D: Tensor | None,
) -> None:
    """Add sums of local correction and stream lack, in the writer's own units, and with x."""
    means, crosses = [], []
    x_TU = x_BNU.float().flatten(0, 1)
    for delta_BND in pair:
        delta_BND = delta_BND.float()
        if scale_D is not None:
            # WHY: where LayerScale is zero the writer cannot correct anything.
            safe_D = torch.where(scale_D == 0, torch.ones_like(scale_D), scale_D)
            delta_BND = torch.where(scale_D == 0, 0.0, delta_BND / safe_D)
        if weights_N is not None:
            delta_BND = delta_BND * weights_N[:, None]
        delta_TD = delta_BND.flatten(0, 1)
        means.append(delta_TD.sum(0, dtype=torch.float64))
        crosses.append(x_TU.T @ delta_TD)
    add_(sums, "target_sum", torch.stack(means))
    add_(sums, "target_cross", torch.stack(crosses))
