"""The task that a checked request is for a model: nothing left to guess before work is done."""

from dataclasses import dataclass

from secateur.allocation.budget import (
    Budget,
    CostBudget,
    Drop,
    ShapeBudget,
    SizesBudget,
)
from secateur.allocation.candidates import Limits, check_protected
from secateur.allocation.target import Demand
from secateur.allocation.types import dense_sizes
from secateur.criteria import criteria
from secateur.errors import UserError
from secateur.methods.checked import Checked, Units, parse_groups
from secateur.methods.request import PruneRequest
from secateur.models.host import Host
from secateur.models.types import ALL_GROUPS, Anatomy, GroupName
from secateur.presets import Preset
from secateur.recipes import load_recipe, recipe_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request resolved against a model: everything checked, nothing left to guess.

    With `exact_tail` the smaller model computes its last layers for the tokens alone that its head
    reads, and costs are planned so.
    """

    request: PruneRequest
    preset: Preset
    budget: Budget
    groups: tuple[GroupName, ...]
    limits: Limits
    exact_tail: bool = False

    @property
    def demand(self) -> Demand:
        """The part of the task that a solver answers."""
        preset = self.preset
        repairs = preset.method == "spectral" or preset.repair != "none"
        return Demand(
            budget=self.budget,
            goal=self.request.goal,
            groups=self.groups,
            limits=self.limits,
            solver=preset.allocation,
            per_cost=preset.per_cost,
            repaired=repairs or preset.replacement == "affine",
            replaced=preset.replacement == "linear",
        )


def resolve(asked: Checked, anatomy: Anatomy) -> Task:
    """The task that a request is for a model; UserError with what to do where it cannot work."""
    request, preset, budget, units = asked.request, asked.preset, asked.budget, asked.units
    if request.recipe is not None:
        return _follow(asked, anatomy)
    if isinstance(budget, SizesBudget):
        limits, tail = Limits(), has_tail(True, anatomy, budget)
        return Task(
            request=request, preset=preset, budget=budget, groups=(), limits=limits, exact_tail=tail
        )
    defaults = Limits()
    limits = Limits(
        align={**defaults.align, **units.align},
        minimum={**defaults.minimum, **units.minimum},
        protect=(*request.protect, *_ends(anatomy, preset.keep_ends)),
    )
    check_protected(anatomy, limits)
    groups = _groups(units, preset, budget)
    check_groups(groups, preset, anatomy, budget)
    if preset.search != "one_shot" and set(groups) - {"branch", "block"}:
        raise UserError(
            f"preset '{preset.name}' searches for whole layers to drop; use the groups branch and "
            "block only, or a budget such as 'drop 4 attention'."
        )
    check_rotation(preset, groups)
    check_merging(preset, groups, budget, anatomy)
    if preset.replacement == "linear" and isinstance(budget, CostBudget) and budget.unit == "ms":
        raise UserError(
            "replacement 'linear' takes time that a budget in ms cannot foresee; give the budget "
            "in macs or params, or another replacement."
        )
    if preset.search == "window" and groups != ("block",):
        raise UserError(
            f"preset '{preset.name}' drops one run of blocks; use the group block, or a budget "
            "such as 'drop 3 blocks'."
        )
    return Task(
        request=request,
        preset=preset,
        budget=budget,
        groups=groups,
        limits=limits,
        exact_tail=has_tail(request.exact_tail, anatomy, budget),
    )


def _follow(asked: Checked, anatomy: Anatomy) -> Task:
    """The task of a recipe; UserError naming the layer where it does not fit the model."""
    request, preset, wanted = asked.request, asked.preset, asked.units.groups
    recipe = load_recipe(str(request.recipe))
    sizes = recipe_sizes(recipe, anatomy)
    limits = Limits(align={}, minimum={}, protect=tuple(request.protect))
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
    if wanted is not None and (extra := set(groups) - set(wanted)):
        raise UserError(
            f"recipe '{recipe.name}' changes {', '.join(sorted(extra))}, which --groups leaves out."
        )
    budget = SizesBudget(sizes=sizes)
    check_rotation(preset, groups)
    check_groups(groups, preset, anatomy, budget)
    return Task(
        request=request,
        preset=preset,
        budget=budget,
        groups=groups,
        limits=limits,
        exact_tail=has_tail(request.exact_tail, anatomy, budget),
    )


def check_merging(
    preset: Preset, groups: tuple[GroupName, ...], budget: Budget, anatomy: Anatomy
) -> None:
    """Refuse merging with other groups or budgets, and anything behind merging."""
    if anatomy.merges:
        raise UserError(
            "this model merges tokens already, and what is behind that cannot be pruned; prune the "
            "model that it was made from first, and merge tokens last."
        )
    merging = preset.method == "merging"
    if merging != ("tokens" in groups) or (merging and len(groups) > 1):
        raise UserError(
            "tokens are merged by a preset of their own, tome, and no other group with them; prune "
            "the weights first, and then the result with --preset tome."
        )
    if merging and not (isinstance(budget, CostBudget) and budget.unit == "macs"):
        raise UserError(
            f"preset '{preset.name}' merges tokens, which is counted in MACs; give a budget such "
            "as '60% macs'."
        )


def has_tail(wanted: bool | None, anatomy: Anatomy, budget: Budget) -> bool:
    """Whether the smaller model gets the exact tail: if asked for, or if the budget counts it.

    A model that has it keeps it. UserError where it is asked for and cannot be had.
    """
    if wanted and anatomy.tail is None:
        raise UserError(
            "the last layers of this model cannot compute less without another output: "
            f"{anatomy.no_tail}; leave out exact_tail, or give a budget in place of 'lossless'."
        )
    counts = isinstance(budget, CostBudget) and budget.unit != "params"
    present = any(branch.rows is not None for branch in anatomy.branches)
    return anatomy.tail is not None and (present or (counts if wanted is None else wanted))


def planned(host: Host, task: Task) -> Host:
    """The host of the dense model with the prices of a task."""
    if not task.exact_tail:
        return host
    anatomy = host.family.read(host.model, exact_tail=True)
    return Host(host.model, host.family, anatomy)


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


def _groups(units: Units, preset: Preset, budget: Budget) -> tuple[GroupName, ...]:
    if isinstance(budget, CostBudget):
        return preset.groups if units.groups is None else units.groups
    if isinstance(budget, SizesBudget):
        raise TypeError("a recipe names its groups")
    named = [*budget.shares, *(_drop_group(drop) for drop in budget.drops)]
    if units.groups is not None and set(named) - set(units.groups):
        extra = ", ".join(sorted(set(named) - set(units.groups)))
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
        if which.check is not None and preset.method == "criteria":
            which.check(preset.settings_for(group), anatomy, group)
        if group == "width" and preset.method == "spectral":
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
        if group in ("branch", "block", "width", "tokens"):
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
