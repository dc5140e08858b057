"""Check all of a pruning request that needs no model, and parse its words, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import ValidationError

from secateur.allocation.budget import Budget, SizesBudget, parse_budget
from secateur.errors import UserError
from secateur.measurement.timing import check_timing
from secateur.methods.request import PruneRequest
from secateur.models.types import ALL_GROUPS, GroupName
from secateur.presets import Preset, load_preset
from secateur.recipes import load_recipe
from secateur.registry import unknown
from secateur.request.parts import UnitsPart
from secateur.training.run_length import parse_run_length

EFFORTS = ("quick", "full")
"""How much the spectral method measures before it plans."""
UNIT_GROUPS: tuple[GroupName, ...] = ("qk", "vo", "heads", "hidden", "width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Groups and widths of a request, their names and sizes checked."""

    groups: tuple[GroupName, ...] | None
    align: Mapping[GroupName, int]
    minimum: Mapping[GroupName, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A request of which all is checked that needs no model, its words parsed once."""

    request: PruneRequest
    preset: Preset
    budget: Budget
    units: Units


def check(request: PruneRequest) -> Checked:
    """Check all of a request that needs no model, and parse its words; UserError otherwise."""
    units = check_units(request)
    budget = _budget(request)
    if request.polish is not None:
        parse_run_length(request.polish)
    if request.effort not in EFFORTS:
        raise UserError(unknown("effort", request.effort, list(EFFORTS)))
    preset = load_preset(request.preset)
    if preset.method == "spectral" and request.repair not in (None, "least_squares"):
        raise UserError(
            f"preset '{preset.name}' refits what is left by itself, so --repair {request.repair} "
            "has no meaning there; leave it out, or take another preset, such as energy."
        )
    if preset.method == "spectral" and request.replacement not in (None, "mean", "affine"):
        raise UserError(
            f"preset '{preset.name}' puts the mean of what is missing in place of dropped layers, "
            f"or an affine map of what comes before; --replacement {request.replacement} has no "
            "meaning there; take another preset, such as layer_drop."
        )
    changed = _changed(preset, request)
    return Checked(request=request, preset=changed, budget=budget, units=units)


def check_units(part: UnitsPart) -> Units:
    """UserError for unknown groups, widths that make no sense and a runtime that is not there."""
    units = Units(
        groups=None if part.groups is None else parse_groups(part.groups),
        align=_by_group(part.align),
        minimum=_by_group(part.minimum),
    )
    check_timing(part.runtime, part.latency_batch)
    for name, sizes in (("align", units.align), ("min-width", units.minimum)):
        for group, size in sizes.items():
            if size < 1 or group not in UNIT_GROUPS:
                raise UserError(
                    f"{name} {group}={size} makes no sense: give a width of at least 1 for one of "
                    f"{', '.join(UNIT_GROUPS)}."
                )
    return units


def _by_group(sizes: Mapping[str, int] | None) -> dict[GroupName, int]:
    given = dict(sizes or {})
    return {group: given[group] for group in parse_groups(list(given))}


def _budget(request: PruneRequest) -> Budget:
    """What the budget says; a recipe is read, but its sizes need a model."""
    if request.budget is not None and request.recipe is not None:
        raise UserError("give either a budget or a recipe, not both.")
    if request.budget is not None:
        return parse_budget(request.budget)
    if request.recipe is None:
        raise UserError("give a budget, such as '50% macs', or a recipe.")
    load_recipe(str(request.recipe))
    if request.align or request.minimum:
        raise UserError(
            "a recipe says every size, so --align and --min-width have no meaning beside it; leave "
            "them out."
        )
    return SizesBudget()


def _changed(preset: Preset, request: PruneRequest) -> Preset:
    wanted = {
        "repair": request.repair,
        "replacement": request.replacement,
        "allocation": request.allocation,
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
