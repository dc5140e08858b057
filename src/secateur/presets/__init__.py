"""A paper's method as one short YAML: which groups, criterion, allocation and repair."""

from importlib.resources import files
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.allocation.normalise import Normalise
from secateur.criteria import criteria
from secateur.criteria.registry import settings_of
from secateur.errors import UserError, short
from secateur.models.types import GroupName
from secateur.registry import unknown
from secateur.surgery.repair import Repair
from secateur.surgery.replace import Replacement
from secateur.textfiles import parse_fields, read_text

DEGRADATIONS = {"delta_kl", "delta_ce", "delta_angle"}
"""Criteria that say how the output changes, which searches measure for many layers at once."""


class First(BaseModel):
    """A first stage: whole heads, layers or blocks, for a `share` of the saving that is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: Literal["heads", "branch", "block"]
    share: Annotated[float, Field(gt=0, lt=1)]


class Preset(BaseModel):
    """One choice for each step. `criteria` overrides `criterion` for single groups.

    `settings` holds the choices of criteria that have some, by the name of the criterion.

    The method `spectral` measures its candidates and cuts front to back; it asks no criterion and
    repairs by itself. The method `merging` merges the same number of tokens in every block.

    `groups` are the ones that compete under a cost budget unless the user names others.
    Under a cost budget, `first` removes its group before the others compete for what remains.
    `normalise` brings the scores of different layers to one scale before they compete; with
    `candidates: measured`, losses are measured on the model's output instead, in nats.

    `replacement` takes the place of dropped layers (by default their mean, or nothing with the
    repair `none`). A `search` other than `one_shot` drops whole layers one after the other:
    `greedy` and `evolutionary` by the degradation of the outputs without all of them, measured as
    the criterion (`delta_kl`, `delta_ce` or `delta_angle`) says; `iterative` by any criterion,
    asked again after each drop; `window` as one run of blocks, by the criterion `cosine` or `angle`
    of its ends. The first and last `keep_ends` blocks stay.

    `rotate` expresses the stream in its principal components before anything else; the channels of
    the group `width` are then these.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    source: str
    groups: tuple[GroupName, ...]
    method: Literal["criteria", "spectral", "merging"] = Field(
        default="criteria", validation_alias=AliasChoices("method", "engine")
    )
    criterion: str = "energy"
    criteria: dict[GroupName, str] = {}
    settings: dict[str, dict[str, object]] = {}
    first: First | None = None
    normalise: Normalise = "none"
    candidates: Literal["scores", "measured"] = Field(
        default="scores", validation_alias=AliasChoices("candidates", "menus")
    )
    allocation: Literal["uniform", "ranking", "knapsack"] = "uniform"
    per_cost: bool = True
    repair: Repair = "none"
    replacement: Replacement | None = Field(
        default=None, validation_alias=AliasChoices("replacement", "stand_in")
    )
    search: Literal["one_shot", "greedy", "iterative", "window", "evolutionary"] = "one_shot"
    keep_ends: int = Field(default=0, ge=0)
    rotate: bool = False

    @model_validator(mode="after")
    def _first_is_offered(self) -> "Preset":
        if self.first is not None and (
            self.first.group not in self.groups or self.method != "criteria"
        ):
            raise ValueError("'first' must name one of 'groups', under the method 'criteria'")
        return self

    @model_validator(mode="after")
    def _rotation_is_of_use(self) -> "Preset":
        if self.rotate and ("width" not in self.groups or self.method != "criteria"):
            raise ValueError("'rotate' needs 'width' among 'groups', and the method 'criteria'")
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
        text = read_text(name, f"preset file '{name}'")
    elif name in preset_names():
        text = (files("secateur.presets") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(unknown("preset", name, preset_names()))
    return parse_preset(name, text)


def parse_preset(name: str, text: str) -> Preset:
    """A preset from YAML text; UserError naming the field that is wrong."""
    fields = parse_fields(text, f"preset '{name}'")
    try:
        preset = Preset.model_validate({"name": name, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = list(Preset.model_fields)
            raise UserError(f"preset '{name}': {unknown('field', where, known)}") from error
        raise UserError(f"preset '{name}': field '{short(where)}': {first['msg']}.") from error
    for used in {preset.criterion, *preset.criteria.values()}:
        criteria.get(used)
    for name_of, values in preset.settings.items():
        try:
            settings_of(criteria.get(name_of), values)
        except UserError as error:
            raise UserError(f"preset '{name}': {error}") from error
    if preset.search != "one_shot" and set(preset.groups) - {"branch", "block"}:
        raise UserError(
            f"preset '{name}': search '{preset.search}' drops whole layers; let its groups be "
            "branch, block or both."
        )
    asked = {preset.criterion_for(group) for group in preset.groups}
    if preset.search in ("greedy", "evolutionary") and not (
        len(asked) == 1 and asked <= DEGRADATIONS
    ):
        raise UserError(
            f"preset '{name}': search '{preset.search}' measures the degradation of the output; "
            f"let its criterion be one of {', '.join(sorted(DEGRADATIONS))}."
        )
    if preset.search == "window" and (
        preset.groups != ("block",) or preset.criterion not in ("cosine", "angle")
    ):
        raise UserError(
            f"preset '{name}': search 'window' compares the ends of runs of blocks; let groups be "
            "[block] and criterion be cosine or angle."
        )
    return preset
