"""The one place of these tests that names fields of what secateur returns.

Where a field is renamed, its name changes here and nowhere else; recorded values stay.
"""

import typing
from collections.abc import Mapping
from typing import Any

from torch import nn

import secateur


def plan_json(found: Any) -> dict[str, Any]:
    """Sizes and kept units of a pruning, as plain data; `found` is what `prune` or `learn` gave."""
    plan = getattr(found, "result", found).plan
    return {
        "shapes": {name: _shape(shape) for name, shape in plan.shapes.items()},
        "widths": dict(plan.widths),
        "units": {
            owner: {group: _listed(units) for group, units in groups.items()}
            for owner, groups in plan.units.items()
        },
        "reductions": dict(plan.reductions),
    }


def numbers(found: Any) -> dict[str, float]:
    """Numbers that a pruning tells beside its plan: its costs, exact up to rounding."""
    result = getattr(found, "result", found)
    return {
        "predicted_loss": float(result.plan.predicted_loss),
        "macs": float(result.cost.macs),
        "params": float(result.cost.params),
    }


def training_numbers(found: Any) -> dict[str, float]:
    """Numbers that a healing tells."""
    return {
        "steps": float(found.report.steps),
        "macs": float(found.cost.macs),
        "params": float(found.cost.params),
    }


def analysis_numbers(record: Mapping[str, object]) -> dict[str, float]:
    """Every measured number in the record of an analysis, by its path; no times, no machine."""
    found: dict[str, float] = {}
    unmeasured = {"costs", "environment", "data", "notes", "seed", "ms", "setting"}
    for key, value in record.items():
        if key not in unmeasured:
            _flatten(value, key, found)
    found = {name.replace("degradation", "damage"): value for name, value in found.items()}
    # WHY: at the start the class token is the same for all images; its rank is that of rounding.
    found.pop("similarity.class.rank.0", None)
    return found


def settings_for(verb: str, **changes: object) -> Any:
    """Settings of a verb (`heal` or `learn`), of the type that its signature names."""
    hint = typing.get_type_hints(getattr(secateur, verb))["settings"]
    kind = next(part for part in typing.get_args(hint) if part is not type(None))
    return kind.model_validate(changes)


def model_of(found: Any) -> nn.Module:
    """The smaller model."""
    model: nn.Module = found.model
    return model


def _shape(shape: Any) -> dict[str, int] | None:
    if shape is None:
        return None
    names = ("heads", "qk", "vo", "hidden")
    return {name: getattr(shape, name) for name in names if hasattr(shape, name)}


def _listed(units: Any) -> Any:
    return [_listed(part) for part in units] if isinstance(units, tuple | list) else int(units)


def _flatten(value: object, path: str, found: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(part, f"{path}.{key}", found)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _flatten(part, f"{path}.{number}", found)
    elif isinstance(value, bool | int | float):
        found[path] = float(value)
