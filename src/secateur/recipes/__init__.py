"""Plans given layer by layer: widths or shares per group and layer, by hand or from a paper."""

import math
from importlib.resources import files
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.allocation.types import GROUPS_OF, Sizes
from secateur.errors import UserError, short
from secateur.models.types import Anatomy, Branch, GroupName
from secateur.registry import unknown
from secateur.textfiles import parse_fields, read_text

ENDINGS = (".yaml", ".yml", ".json")
UNIT_GROUPS: tuple[GroupName, ...] = ("heads", "qk", "vo", "hidden")

Size = Annotated[int, Field(strict=True, ge=1)]
Share = (
    Annotated[float, Field(strict=True, gt=0, le=1)]
    | Annotated[str, Field(pattern=r"^\s*\d+(\.\d*)?\s*%\s*$")]
)
One = Size | Share
PerHead = Annotated[list[One], Field(min_length=1)]
Layers = One | list[One | PerHead]
"""A size for all layers, or one per layer in the order of the stream."""


class Recipe(BaseModel):
    """What is kept. Whole numbers are units, fractions and percents shares, rounded down.

    `heads`, `qk`, `vo` and `hidden` hold one size for all layers that have such units, or a list,
    one per layer from the first block on; `qk` and `vo` are per head. `width` is that of the
    stream, `drop` lists branches and blocks that go. `branches` gives sizes by name, before which
    all others yield. What a recipe does not mention stays.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str = ""
    source: str = ""
    width: One | dict[str, One] | None = None
    heads: Layers | None = None
    qk: Layers | None = None
    vo: Layers | None = None
    hidden: Layers | None = None
    drop: tuple[str, ...] = ()
    branches: dict[str, dict[GroupName, One | PerHead]] = {}


def recipe_names() -> list[str]:
    """Names of the recipes that ship with secateur."""
    folder = files("secateur.recipes")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def load_recipe(name: str) -> Recipe:
    """The recipe called `name`, or the one in a YAML or JSON file; UserError if it is not valid."""
    if name.endswith(ENDINGS):
        text = read_text(name, f"recipe file '{name}'")
    elif name in recipe_names():
        text = (files("secateur.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(unknown("recipe", name, recipe_names()))
    return parse_recipe(name, text)


def parse_recipe(name: str, text: str) -> Recipe:
    """A recipe from YAML (or JSON) text; UserError naming the field that is wrong."""
    fields = parse_fields(text, f"recipe '{name}'")
    try:
        return Recipe.model_validate({"name": name, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            where = str(first["loc"][0])
            raise UserError(
                f"recipe '{name}': {unknown('field', where, list(Recipe.model_fields))}"
            ) from error
        where = min(
            (_place(one["loc"]) for one in error.errors()), key=lambda name: "[" not in name
        )
        raise UserError(
            f"recipe '{name}': field '{short(where)}' is not understood: give whole numbers of at "
            "least 1 for units, or shares such as 0.5 or 50%."
        ) from error


def _place(path: tuple[int | str, ...]) -> str:
    """Where in a recipe a value stands, without the kinds that it could have had."""
    if path[0] in ("branches", "width") and len(path) > 2:
        return ".".join(map(str, path[:2]))
    number = next((f"[{part}]" for part in path if isinstance(part, int)), "")
    return f"{path[0]}{number}"


def recipe_sizes(recipe: Recipe, anatomy: Anatomy) -> Sizes:
    """The size of every group that the recipe mentions; UserError naming a layer it does not fit.

    Layers that are dropped have no other size.
    """
    sizes = _dropped(recipe, anatomy)
    for group in UNIT_GROUPS:
        if (value := getattr(recipe, group)) is not None:
            sizes |= _layers(recipe, anatomy, group, value)
    for name, own in recipe.branches.items():
        known = [branch.id for branch in anatomy.branches]
        if name not in known:
            raise UserError(f"recipe '{recipe.name}': {unknown('branch', name, known)}")
        for group, one in own.items():
            branch = anatomy.branch(name)
            if group not in GROUPS_OF[branch.kind]:
                raise UserError(f"recipe '{recipe.name}': {name} has no group '{group}'.")
            sizes[name, group] = _size(recipe, branch, group, one)
    return sizes | _widths(recipe, anatomy)


def _dropped(recipe: Recipe, anatomy: Anatomy) -> Sizes:
    blocks = [block.id for block in anatomy.blocks if block.branches]
    branches = [branch.id for branch in anatomy.branches]
    sizes: Sizes = {}
    for name in recipe.drop:
        if name in blocks:
            sizes[name, "block"] = 0
        elif name in branches:
            sizes[name, "branch"] = 0
        else:
            raise UserError(
                f"recipe '{recipe.name}': {unknown('branch or block', name, branches + blocks)}"
            )
    return sizes


def _layers(recipe: Recipe, anatomy: Anatomy, group: GroupName, value: Any) -> Sizes:
    """Sizes of one group in all layers that have it."""
    own = [branch for branch in anatomy.branches if group in GROUPS_OF[branch.kind]]
    if not isinstance(value, list):
        return {(branch.id, group): _size(recipe, branch, group, value) for branch in own}
    if len(value) != len(own):
        kind = "MLPs" if group == "hidden" else "attention layers"
        last = own[-1].id if own else "none"
        which = (
            f"there is none after {last}"
            if len(value) > len(own)
            else f"{own[len(value)].id} is the first without one"
        )
        raise UserError(
            f"recipe '{recipe.name}' gives {len(value)} sizes of '{group}', but the model has "
            f"{len(own)} {kind}: {which}; give one per layer."
        )
    pairs = zip(own, value, strict=True)
    return {(branch.id, group): _size(recipe, branch, group, one) for branch, one in pairs}


def _size(recipe: Recipe, branch: Branch, group: GroupName, value: Any) -> int:
    """What is kept of a group of one layer."""
    present = branch.shape.size(group)
    where = f"recipe '{recipe.name}': {branch.id}"
    if isinstance(value, list):
        heads = branch.shape.size("heads") if branch.kind == "attention" else 1
        if len(value) != heads:
            raise UserError(f"{where} has {heads} heads, but {len(value)} sizes of '{group}'.")
        if len(set(value)) > 1:
            raise UserError(
                f"{where} keeps {', '.join(map(str, value))} '{group}' dims in its heads; all "
                "heads of a layer keep equally many, so give one number."
            )
        value = value[0]
    size = _kept(value, present)
    if size > present:
        raise UserError(
            f"{where} would keep {size} units of '{group}', more than the {present} it has."
        )
    if size < 1:
        raise UserError(f"{where} would keep nothing of '{group}'; list it under drop instead.")
    if size < present and group in branch.refusals:
        raise UserError(f"{where} cannot lose units of '{group}': {branch.refusals[group]}.")
    return size


def _kept(value: int | float | str, present: int) -> int:
    if isinstance(value, int):
        return value
    share = float(value.strip().rstrip("% ")) / 100 if isinstance(value, str) else value
    return math.floor(share * present + 1e-9)


def _widths(recipe: Recipe, anatomy: Anatomy) -> Sizes:
    if recipe.width is None:
        return {}
    if "width" in anatomy.refusals:
        raise UserError(
            f"recipe '{recipe.name}' sets a width, but the stream cannot be made narrower here: "
            f"{anatomy.refusals['width']}."
        )
    given = recipe.width
    if not isinstance(given, dict):
        given = dict.fromkeys(anatomy.widths, given)
    sizes: Sizes = {}
    for name, value in given.items():
        if name not in anatomy.widths:
            raise UserError(
                f"recipe '{recipe.name}': {unknown('stream', name, list(anatomy.widths))}"
            )
        present = anatomy.widths[name]
        size = _kept(value, present)
        if not 1 <= size <= present:
            raise UserError(
                f"recipe '{recipe.name}' sets the width of '{name}' to {size}; it lies between 1 "
                f"and {present}."
            )
        sizes[name, "width"] = size
    return sizes
