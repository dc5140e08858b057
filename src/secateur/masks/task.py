"""What a user may ask of learned masks, checked before any work is done."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from secateur.allocation.budget import CostBudget, parse_budget
from secateur.allocation.costs import cost_function
from secateur.allocation.menus import Limits, check_protected
from secateur.allocation.target import Target, cost_limit
from secateur.criteria import Criterion, criteria
from secateur.criteria.registry import settings_of
from secateur.errors import UserError
from secateur.masks.estimator import forms
from secateur.masks.gates import Gate
from secateur.masks.granularity import Scope, Sharing, gates_of, sharings, silenced_by_weights
from secateur.masks.pricing import Pricing
from secateur.masks.projection import check_reachable
from secateur.masks.settings import LearnSettings
from secateur.masks.start.by_criterion import start_needs
from secateur.masks.start.from_plans import SPECTRAL
from secateur.masks.strategy import ways
from secateur.methods.task import Options, Task, check_offered, check_timing, check_widths
from secateur.models.family import Family
from secateur.models.types import Anatomy, GroupName
from secateur.presets import Preset

PRESET = "learned_masks"
NO_CRITERION = "none"
SEARCH = ("search", "axes", "takeover", "refit", "ascent", "damping", "ramp", "travel", "lasso")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnOptions:
    """A run in full. `groups` None: those of the sharing. `criterion` "none": all units alike."""

    budget: str
    sharing: str = "common_count"
    gates: str = "straight_through"
    criterion: str = "spectral"
    groups: tuple[GroupName, ...] | None = None
    protect: tuple[str, ...] = ()
    align: Mapping[GroupName, int] = field(default_factory=dict)
    minimum: Mapping[GroupName, int] = field(default_factory=dict)
    runtime: str = "eager"
    latency_batch: int = 1
    settings: LearnSettings = field(default_factory=LearnSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnTask:
    """Options resolved against a model. `task` is the same in the words of `prune`."""

    options: LearnOptions
    sharing: Sharing
    gates: tuple[Gate, ...]
    task: Task

    def about(self) -> dict[str, object]:
        """What makes this run another than others, beside its training settings."""
        it = self.options
        return {
            "budget": it.budget,
            "sharing": it.sharing,
            "gates": it.gates,
            "criterion": it.criterion,
            "groups": list(self.task.groups),
            "protect": list(it.protect),
            "align": dict(self.task.limits.align),
            "min_width": dict(self.task.limits.minimum),
            "search": {k: getattr(it.settings, k) for k in SEARCH},
            "distil": it.settings.distil.model_dump(mode="json"),
        }


def check_learn_words(options: LearnOptions) -> CostBudget:
    """The budget, once all is checked that needs no model; UserError otherwise."""
    budget = parse_budget(options.budget)
    if not isinstance(budget, CostBudget):
        raise UserError(
            f"budget '{options.budget}' is one of shapes; masks are learned under a budget of the "
            "whole model, such as '30% params', '2 GMACs' or '6.5 ms'."
        )
    check_timing(options.runtime, options.latency_batch)
    check_widths(options.align, options.minimum)
    sharings.get(options.sharing)
    forms.get(options.gates)
    ways.get(options.settings.search)
    if options.criterion not in (NO_CRITERION, SPECTRAL):
        criteria.get(options.criterion)
    it = options.settings
    if it.warmup_share + it.search_share >= 1 - 1e-9:
        raise UserError(
            f"warm-up ({it.warmup_share:g}) and search ({it.search_share:g}) take the whole run; "
            "leave a share for fine-tuning."
        )
    return budget


def resolve_learn(
    options: LearnOptions, model: nn.Module, family: Family, anatomy: Anatomy
) -> LearnTask:
    """Check options against a model; UserError with what to do for anything that cannot work."""
    budget = check_learn_words(options)
    sharing = sharings.get(options.sharing)
    limits = _limits(options, budget)
    check_protected(anatomy, limits)
    groups = _groups(options, sharing, anatomy, budget)
    preset = Preset(
        name=PRESET,
        title=f"Learned masks: {sharing.title[0].lower()}{sharing.title[1:]}",
        source=forms.get(options.gates).source,
        groups=groups,
        criterion=options.criterion,
    )
    check_offered(groups, anatomy, budget)
    if "width" in groups and options.settings.distil.needs_streams:
        raise UserError(
            "a narrower stream cannot be compared with the dense one, but the settings ask for it "
            "(distil: token_weight, feature_weight or layerwise); set these to 0, or leave out the "
            "group width."
        )
    scope = Scope(
        anatomy=anatomy,
        groups=frozenset(groups),
        limits=limits,
        linear=silenced_by_weights(model, family, anatomy),
    )
    gates = tuple(gates_of(sharing, scope))
    if options.criterion not in (NO_CRITERION, SPECTRAL):
        _check_criterion(criteria.get(options.criterion), groups, anatomy, gates)
    task = Task(
        options=_described(options), preset=preset, budget=budget, groups=groups, limits=limits
    )
    found = LearnTask(options=options, sharing=sharing, gates=gates, task=task)
    if budget.unit != "ms":
        check_reachable(gates, pricing_of(found, anatomy, None), options.budget)
    return found


def _groups(
    options: LearnOptions, sharing: Sharing, anatomy: Anatomy, budget: CostBudget
) -> tuple[GroupName, ...]:
    """The groups asked for, else those of the sharing that the model and the budget know of.

    A narrower stream cannot be timed layer by layer.
    """
    if options.groups is not None:
        return options.groups
    narrows = bool(anatomy.streams) and budget.unit != "ms"
    return tuple(group for group in sharing.groups if group != "width" or narrows)


def _check_criterion(
    which: Criterion, groups: Iterable[GroupName], anatomy: Anatomy, gates: Iterable[Gate]
) -> None:
    """UserError for a criterion that cannot score the groups of this model, or its gates."""
    for group in groups:
        if which.check is not None:
            which.check(settings_of(which, {}), anatomy, group)
    start_needs(which, gates)


def pricing_of(task: LearnTask, anatomy: Anatomy, target: Target | None) -> Pricing:
    """Cost and limit of a task: counted, or as a `target` says."""
    budget = task.task.budget
    assert isinstance(budget, CostBudget)
    if target is None:
        cost_of, limit = cost_function(anatomy, budget.unit), cost_limit(anatomy, budget)
    else:
        cost_of, limit = target.cost_of, target.limit
    return Pricing(anatomy=anatomy, cost_of=cost_of, limits=task.task.limits, limit=limit)


def _limits(options: LearnOptions, budget: CostBudget) -> Limits:
    """Widths of any size for what is counted; those that runtimes like for what is timed.

    A stream keeps some channels, since a norm over few of them says nothing.
    """
    defaults = Limits() if budget.unit == "ms" else Limits(align={}, minimum={"width": 8})
    return replace(
        defaults,
        align={**defaults.align, **options.align},
        minimum={**defaults.minimum, **options.minimum},
        protect=options.protect,
    )


def _described(options: LearnOptions) -> Options:
    """The options in the words of `prune`, for the record of the run."""
    return Options(
        budget=options.budget,
        preset=PRESET,
        align=options.align,
        minimum=options.minimum,
        protect=options.protect,
        seed=options.settings.seed,
        runtime=options.runtime,
        latency_batch=options.latency_batch,
    )
