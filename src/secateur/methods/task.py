"""What a user may ask of a pruning run, checked before any work is done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from pydantic import ValidationError

from secateur.allocation.budget import (
    Budget,
    CostBudget,
    Drop,
    ShapeBudget,
    SizesBudget,
    parse_budget,
)
from secateur.allocation.menus import Limits, check_protected
from secateur.allocation.target import Demand
from secateur.allocation.types import dense_sizes
from secateur.criteria import criteria
from secateur.errors import UserError
from secateur.measurement.runtimes import require
from secateur.models.types import ALL_GROUPS, Anatomy, GroupName
from secateur.presets import DEFAULT, Preset, load_preset
from secateur.recipes import load_recipe, recipe_sizes
from secateur.registry import unknown
from secateur.training.run_length import parse_run_length

LIMIT = 512
"""Calibration images taken from a path or data string unless told otherwise."""
EFFORTS = ("quick", "full")
"""How much the spectral engine measures before it plans."""
UNIT_GROUPS: tuple[GroupName, ...] = ("qk", "vo", "heads", "hidden", "width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A pruning run in full. `groups` None: those of the budget, else those of the preset.

    `limit`, `workers` and `skip_unreadable` concern images given as a path or data string;
    `polish` is a time or a number of steps of training after the cut (None: no training). Latency
    counts in `runtime` with `latency_batch` images at a time. A `recipe` stands for a budget.
    """

    budget: str | None = None
    recipe: str | None = None
    preset: str = DEFAULT
    groups: tuple[GroupName, ...] | None = None
    align: Mapping[GroupName, int] = field(default_factory=dict)
    minimum: Mapping[GroupName, int] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    repair: str | None = None
    stand_in: str | None = None
    allocation: str | None = None
    loss: str | None = None
    effort: str = "full"
    seed: int = 0
    batch_size: int = 32
    limit: int | None = LIMIT
    workers: int = 0
    skip_unreadable: bool = False
    polish: str | None = None
    runtime: str = "eager"
    latency_batch: int = 1

    @property
    def goal(self) -> str:
        """The budget, or which recipe stands in its place."""
        return f"recipe {self.recipe}" if self.budget is None else self.budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Options resolved against a model: everything checked, nothing left to guess."""

    options: Options
    preset: Preset
    budget: Budget
    groups: tuple[GroupName, ...]
    limits: Limits

    @property
    def demand(self) -> Demand:
        """The part of the task that a solver answers."""
        preset = self.preset
        repairs = preset.engine == "spectral" or preset.repair != "none"
        return Demand(
            budget=self.budget,
            goal=self.options.goal,
            groups=self.groups,
            limits=self.limits,
            solver=preset.allocation,
            per_cost=preset.per_cost,
            repaired=repairs or preset.stand_in == "affine",
            replaced=preset.stand_in == "linear",
        )


def resolve(options: Options, anatomy: Anatomy) -> Task:
    """Check options against a model; UserError with what to do for anything that cannot work."""
    preset, budget = check_words(options)
    if options.recipe is not None:
        return _follow(options, preset, anatomy)
    defaults = Limits()
    limits = Limits(
        align={**defaults.align, **options.align},
        minimum={**defaults.minimum, **options.minimum},
        protect=options.protect + _ends(anatomy, preset.keep_ends),
    )
    check_protected(anatomy, limits)
    groups = _groups(options, preset, budget)
    check_groups(groups, preset, anatomy, budget)
    if preset.search != "one_shot" and set(groups) - {"branch", "block"}:
        raise UserError(
            f"preset '{preset.name}' searches for whole layers to drop; use the groups branch and "
            "block only, or a budget such as 'drop 4 attention'."
        )
    check_rotation(preset, groups)
    if preset.stand_in == "linear" and isinstance(budget, CostBudget) and budget.unit == "ms":
        raise UserError(
            "stand-in 'linear' takes time that a budget in ms cannot foresee; give the budget in "
            "macs or params, or another stand-in."
        )
    if preset.search == "window" and groups != ("block",):
        raise UserError(
            f"preset '{preset.name}' drops one run of blocks; use the group block, or a budget "
            "such as 'drop 3 blocks'."
        )
    return Task(options=options, preset=preset, budget=budget, groups=groups, limits=limits)


def _follow(options: Options, preset: Preset, anatomy: Anatomy) -> Task:
    """The task of a recipe; UserError naming the layer where it does not fit the model."""
    recipe = load_recipe(options.recipe or "")
    sizes = recipe_sizes(recipe, anatomy)
    limits = Limits(align={}, minimum={}, protect=options.protect)
    check_protected(anatomy, limits)
    dense = dense_sizes(anatomy)
    changed = {key: size for key, size in sizes.items() if size < dense[key]}
    for (owner, group), size in changed.items():
        if limits.protects(owner):
            raise UserError(
                f"recipe '{recipe.name}' sets '{group}' of {owner} to {size}, but {owner} is "
                "protected; change one of the two."
            )
    if not changed:
        raise UserError(f"recipe '{recipe.name}' keeps everything that the model has.")
    groups = parse_groups([group for _, group in changed])
    if options.groups is not None and (extra := set(groups) - set(options.groups)):
        raise UserError(
            f"recipe '{recipe.name}' changes {', '.join(sorted(extra))}, which --groups leaves out."
        )
    budget = SizesBudget(sizes=sizes)
    check_rotation(preset, groups)
    check_groups(groups, preset, anatomy, budget)
    return Task(options=options, preset=preset, budget=budget, groups=groups, limits=limits)


def check_rotation(preset: Preset, groups: tuple[GroupName, ...]) -> None:
    """Refuse to rotate a stream that will stay as wide as it is."""
    if preset.rotate and "width" not in groups:
        raise UserError(
            f"preset '{preset.name}' rotates the stream to make it narrower; let 'width' be among "
            "the groups, or give a budget that names it, such as '75% width'."
        )


def _ends(anatomy: Anatomy, count: int) -> tuple[str, ...]:
    """The first and last blocks that a preset keeps."""
    present = [block.id for block in anatomy.blocks if block.branches]
    return tuple(dict.fromkeys([*present[:count], *present[len(present) - count :]]))


def check_words(options: Options) -> tuple[Preset, Budget]:
    """The preset, with the options' changes, and the budget: all that needs no model to check."""
    budget = _budget(options)
    if options.polish is not None:
        parse_run_length(options.polish)
    if options.effort not in EFFORTS:
        raise UserError(unknown("effort", options.effort, list(EFFORTS)))
    check_timing(options.runtime, options.latency_batch)
    check_widths(options.align, options.minimum)
    preset = load_preset(options.preset)
    if preset.engine == "spectral" and options.repair not in (None, "least_squares"):
        raise UserError(
            f"preset '{preset.name}' refits what is left by itself, so --repair {options.repair} "
            "has no meaning there; leave it out, or take another preset, such as energy."
        )
    if preset.engine == "spectral" and options.stand_in not in (None, "mean", "affine"):
        raise UserError(
            f"preset '{preset.name}' puts the mean of what is missing in place of dropped layers, "
            f"or an affine map of what comes before; --stand-in {options.stand_in} has no meaning "
            "there; take another preset, such as layer_drop."
        )
    return _changed(preset, options), budget


def check_timing(runtime: str, latency_batch: int) -> None:
    """UserError for a runtime that is not there, and for no images at a time."""
    require(runtime)
    if latency_batch < 1:
        raise UserError(f"the batch for latency must be at least 1, not {latency_batch}.")


def check_widths(align: Mapping[GroupName, int], minimum: Mapping[GroupName, int]) -> None:
    """UserError for widths below 1, and of groups that have none."""
    for name, sizes in (("align", align), ("min-width", minimum)):
        for group, size in sizes.items():
            if size < 1 or group not in UNIT_GROUPS:
                raise UserError(
                    f"{name} {group}={size} makes no sense: give a width of at least 1 for one of "
                    f"{', '.join(UNIT_GROUPS)}."
                )


def _budget(options: Options) -> Budget:
    """What the budget says; a recipe is read, but its sizes need a model."""
    if options.budget is not None and options.recipe is not None:
        raise UserError("give either a budget or a recipe, not both.")
    if options.budget is not None:
        return parse_budget(options.budget)
    if options.recipe is None:
        raise UserError("give a budget, such as '50% macs', or a recipe.")
    load_recipe(options.recipe)
    if options.align or options.minimum:
        raise UserError(
            "a recipe says every size, so --align and --min-width have no meaning beside it; leave "
            "them out."
        )
    return SizesBudget()


def _changed(preset: Preset, options: Options) -> Preset:
    wanted = {
        "repair": options.repair,
        "stand_in": options.stand_in,
        "allocation": options.allocation,
    }
    changes = {key: value for key, value in wanted.items() if value is not None}
    try:
        return Preset.model_validate(preset.model_dump() | changes)
    except ValidationError as error:
        field_name = str(error.errors()[0]["loc"][0])
        known = known_values(Preset.model_fields[field_name].annotation)
        raise UserError(unknown(field_name, str(changes[field_name]), known)) from error


def known_values(annotation: object) -> list[str]:
    """The strings that a (maybe optional) literal type allows."""
    found: list[str] = []
    for part in get_args(annotation):
        found += [part] if isinstance(part, str) else known_values(part)
    return found


def parse_groups(names: Sequence[str]) -> tuple[GroupName, ...]:
    """Group names from strings; UserError with suggestions for an unknown one."""
    for name in names:
        if name not in ALL_GROUPS:
            raise UserError(unknown("group", name, list(ALL_GROUPS)))
    return tuple(group for group in ALL_GROUPS if group in names)


def _groups(options: Options, preset: Preset, budget: Budget) -> tuple[GroupName, ...]:
    if isinstance(budget, CostBudget):
        return preset.groups if options.groups is None else options.groups
    if isinstance(budget, SizesBudget):
        raise TypeError("a recipe names its groups")
    named = [*budget.shares, *(_drop_group(drop) for drop in budget.drops)]
    if options.groups is not None and set(named) - set(options.groups):
        extra = ", ".join(sorted(set(named) - set(options.groups)))
        raise UserError(
            f"the budget names {extra}, which --groups leaves out; name the same groups in both."
        )
    return parse_groups(named)


def _drop_group(drop: Drop) -> GroupName:
    return "block" if drop.kind == "block" else "branch"


def check_groups(
    groups: tuple[GroupName, ...], preset: Preset, anatomy: Anatomy, budget: Budget
) -> None:
    """Refuse groups that the model cannot offer, or the preset cannot score, with the reason."""
    check_offered(groups, anatomy, budget)
    for group in groups:
        which = criteria.get(preset.criterion_for(group))
        if which.check is not None and preset.engine == "criteria":
            which.check(preset.settings_for(group), anatomy, group)
        if group == "width" and preset.engine == "spectral":
            raise UserError(
                f"preset '{preset.name}' cannot make the residual stream narrower, since its "
                "refits aim at every channel of the dense stream; leave out 'width', or take a "
                "preset that selects units, such as snp or magnitude."
            )


def check_offered(groups: tuple[GroupName, ...], anatomy: Anatomy, budget: Budget) -> None:
    """Refuse groups that no branch of the model can offer, with the reason."""
    if not groups:
        raise UserError(f"no group is left to prune; name some of {', '.join(ALL_GROUPS)}.")
    for group in groups:
        if group in anatomy.refusals:
            raise UserError(f"group '{group}' cannot be pruned here: {anatomy.refusals[group]}.")
        if group == "width":
            _check_width(anatomy, budget)
        if group in ("branch", "block", "width"):
            continue
        if any(group in branch.groups for branch in anatomy.branches):
            continue
        reasons = {b.refusals[group] for b in anatomy.branches if group in b.refusals}
        why = "; ".join(sorted(reasons)) or "no layer of this model has such units"
        if isinstance(budget, ShapeBudget) or len(groups) == 1:
            raise UserError(f"group '{group}' cannot be pruned in this model: {why}.")


def _check_width(anatomy: Anatomy, budget: Budget) -> None:
    """Refuse a narrower stream where the model or the budget knows of none."""
    if not anatomy.streams:
        raise UserError(
            "group 'width' cannot be pruned here: no way to make the stream of this family of "
            "models narrower is known."
        )
    if isinstance(budget, CostBudget) and budget.unit == "ms":
        raise UserError(
            "a budget in ms cannot weigh 'width': layers are timed at the present width of the "
            "stream; leave it out, or give the budget in macs or params."
        )
