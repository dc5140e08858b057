"""What a user may ask of learned masks, checked before any work is done."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from secateur.allocation.budget import CostBudget, parse_budget
from secateur.allocation.candidates import Limits, check_protected
from secateur.allocation.costs import cost_function
from secateur.allocation.target import Target, cost_limit
from secateur.criteria import Criterion, criteria
from secateur.criteria.registry import settings_of
from secateur.errors import UserError
from secateur.masks.estimator import estimators
from secateur.masks.gates import Gate
from secateur.masks.granularity import (
    Granularity,
    Scope,
    gates_of,
    granularities,
    silenced_by_weights,
)
from secateur.masks.pricing import Pricing
from secateur.masks.projection import check_reachable
from secateur.masks.request import LearnRequest
from secateur.masks.settings import LearnSettings
from secateur.masks.start.by_criterion import start_needs
from secateur.masks.start.from_plans import SPECTRAL
from secateur.masks.strategy import strategies
from secateur.methods.checked import Units, check_units
from secateur.methods.request import PruneRequest
from secateur.methods.task import Task, check_offered, has_tail, planned
from secateur.models.host import Host
from secateur.models.types import Anatomy, GroupName
from secateur.presets import Preset
from secateur.request.parts import UnitsPart

PRESET = "learned_masks"
NO_CRITERION = "none"
SEARCH = ("search", "axes", "takeover", "refit", "ascent", "damping", "ramp", "travel", "lasso")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLearning:
    """A request of which all is checked that needs no model, its words parsed once."""

    request: LearnRequest
    settings: LearnSettings
    budget: CostBudget
    units: Units


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnTask:
    """A request resolved against a model. `task` is the same in the words of `prune`."""

    request: LearnRequest
    settings: LearnSettings
    sharing: Granularity
    gates: tuple[Gate, ...]
    task: Task

    def about(self) -> dict[str, object]:
        """What makes this run another than others, beside its training settings."""
        it = self.request
        return {
            "budget": it.budget,
            "sharing": it.sharing,
            "gates": it.gates,
            "criterion": it.criterion,
            "groups": list(self.task.groups),
            "protect": list(it.protect),
            "align": dict(self.task.limits.align),
            "min_width": dict(self.task.limits.minimum),
            "search": {k: getattr(self.settings, k) for k in SEARCH},
            "distil": self.settings.distil.model_dump(mode="json"),
        }


def check_learning(request: LearnRequest) -> CheckedLearning:
    """Check all of a request that needs no model, and parse its words; UserError otherwise."""
    units = check_units(request)
    budget = parse_budget(request.budget)
    if not isinstance(budget, CostBudget):
        raise UserError(
            f"budget '{request.budget}' is one of shapes; masks are learned under a budget of the "
            "whole model, such as '30% params', '2 GMACs' or '6.5 ms'."
        )
    granularities.get(request.sharing)
    estimators.get(request.gates)
    it = request.settings or LearnSettings()
    strategies.get(it.search)
    if request.criterion not in (NO_CRITERION, SPECTRAL):
        criteria.get(request.criterion)
    if it.warmup_share + it.search_share >= 1 - 1e-9:
        raise UserError(
            f"warm-up ({it.warmup_share:g}) and search ({it.search_share:g}) take the whole run; "
            "leave a share for fine-tuning."
        )
    return CheckedLearning(request=request, settings=it, budget=budget, units=units)


def resolve_learn(asked: CheckedLearning, host: Host) -> LearnTask:
    """The task that a request is for a model; UserError with what to do where it cannot work."""
    request, budget, anatomy = asked.request, asked.budget, host.anatomy
    sharing = granularities.get(request.sharing)
    limits = _limits(asked)
    check_protected(anatomy, limits)
    groups = _groups(asked, sharing, anatomy)
    preset = Preset(
        name=PRESET,
        title=f"Learned masks: {sharing.title[0].lower()}{sharing.title[1:]}",
        source=estimators.get(request.gates).source,
        groups=groups,
        criterion=request.criterion,
    )
    check_offered(groups, anatomy, budget)
    if "width" in groups and asked.settings.distil.needs_streams:
        raise UserError(
            "a narrower stream cannot be compared with the dense one, but the settings ask for it "
            "(distil: token_weight, feature_weight or layerwise); set these to 0, or leave out the "
            "group width."
        )
    scope = Scope(
        anatomy=anatomy,
        groups=frozenset(groups),
        limits=limits,
        linear=silenced_by_weights(host),
    )
    gates = tuple(gates_of(sharing, scope))
    if request.criterion not in (NO_CRITERION, SPECTRAL):
        _check_criterion(criteria.get(request.criterion), groups, anatomy, gates)
    task = Task(
        request=_described(asked),
        preset=preset,
        budget=budget,
        groups=groups,
        limits=limits,
        exact_tail=has_tail(request.exact_tail, anatomy, budget),
    )
    found = LearnTask(
        request=request, settings=asked.settings, sharing=sharing, gates=gates, task=task
    )
    if budget.unit != "ms":
        priced = planned(host, task).anatomy
        check_reachable(gates, pricing_of(found, priced, None), request.budget)
    return found


def _groups(
    asked: CheckedLearning, sharing: Granularity, anatomy: Anatomy
) -> tuple[GroupName, ...]:
    """The groups asked for, else those of the sharing that the model and the budget know of.

    A narrower stream cannot be timed layer by layer.
    """
    if asked.units.groups is not None:
        return asked.units.groups
    narrows = bool(anatomy.streams) and asked.budget.unit != "ms"
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


def _limits(asked: CheckedLearning) -> Limits:
    """Widths of any size for what is counted; those that runtimes like for what is timed.

    A stream keeps some channels, since a norm over few of them says nothing.
    """
    defaults = Limits() if asked.budget.unit == "ms" else Limits(align={}, minimum={"width": 8})
    return replace(
        defaults,
        align={**defaults.align, **asked.units.align},
        minimum={**defaults.minimum, **asked.units.minimum},
        protect=tuple(asked.request.protect),
    )


def _described(asked: CheckedLearning) -> PruneRequest:
    """The request in the words of `prune`, for the record of the run."""
    shared = {one.name: getattr(asked.request, one.name) for one in fields(UnitsPart)}
    return PruneRequest(asked.request.budget, preset=PRESET, seed=asked.settings.seed, **shared)
