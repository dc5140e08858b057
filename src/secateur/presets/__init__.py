"""A paper's method as one short YAML: which groups, criterion, allocation and repair."""

from importlib.resources import files
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.anatomy.types import GroupName
from secateur.criteria import criteria
from secateur.criteria.registry import settings_of
from secateur.errors import UserError
from secateur.planning.normalise import Normalise
from secateur.registry import unknown

DEFAULT = "spectral"


class First(BaseModel):
    """A first stage: whole heads, layers or blocks, for a `share` of the saving that is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: Literal["heads", "branch", "block"]
    share: Annotated[float, Field(gt=0, lt=1)]


class Preset(BaseModel):
    """One choice for each step. `criteria` overrides `criterion` for single groups.

    `settings` holds the choices of criteria that have some, by the name of the criterion.

    The engine `spectral` measures its menus and cuts front to back; it asks no criterion and
    repairs by itself.

    `groups` are the ones that compete under a cost budget unless the user names others.
    Under a cost budget, `first` removes its group before the others compete for what remains.
    `normalise` brings the scores of different layers to one scale before they compete; with
    `menus: measured`, losses are measured on the model's output instead, in nats.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    source: str
    groups: tuple[GroupName, ...]
    engine: Literal["criteria", "spectral"] = "criteria"
    criterion: str = "energy"
    criteria: dict[GroupName, str] = {}
    settings: dict[str, dict[str, object]] = {}
    first: First | None = None
    normalise: Normalise = "none"
    menus: Literal["scores", "measured"] = "scores"
    allocation: Literal["uniform", "ranking", "knapsack"] = "uniform"
    per_cost: bool = True
    repair: Literal["none", "mean", "least_squares"] = "none"

    @model_validator(mode="after")
    def _first_is_offered(self) -> "Preset":
        if self.first is not None and (
            self.first.group not in self.groups or self.engine != "criteria"
        ):
            raise ValueError("'first' must name one of 'groups', under the engine 'criteria'")
        return self

    def criterion_for(self, group: GroupName) -> str:
        """The criterion that scores a group."""
        return self.criteria.get(group, self.criterion)

    def settings_for(self, group: GroupName) -> BaseModel | None:
        """The settings of the criterion that scores a group; None for one without any."""
        which = criteria.get(self.criterion_for(group))
        return settings_of(which, self.settings.get(which.name, {}))


def preset_names() -> list[str]:
    """Names of the presets that ship with secateur."""
    folder = files("secateur.presets")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def load_preset(name: str) -> Preset:
    """The preset called `name`, or the one in a YAML file; UserError when it is not valid."""
    if name.endswith((".yaml", ".yml")):
        try:
            with open(name, encoding="utf-8") as file:
                text = file.read()
        except OSError as error:
            raise UserError(f"preset file '{name}' cannot be read: {error.strerror}.") from error
    elif name in preset_names():
        text = (files("secateur.presets") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(unknown("preset", name, preset_names()))
    return parse_preset(name, text)


def parse_preset(name: str, text: str) -> Preset:
    """A preset from YAML text; UserError naming the field that is wrong."""
    try:
        fields = yaml.safe_load(text)
        preset = Preset.model_validate({"name": name, **fields})
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"preset '{name}' is not valid YAML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(Preset.model_fields)
            raise UserError(f"preset '{name}': {unknown('field', where, known)}") from error
        raise UserError(f"preset '{name}': field '{where}': {first['msg']}.") from error
    for used in {preset.criterion, *preset.criteria.values()}:
        criteria.get(used)
    for name_of, values in preset.settings.items():
        try:
            settings_of(criteria.get(name_of), values)
        except UserError as error:
            raise UserError(f"preset '{name}': {error}") from error
    return preset
