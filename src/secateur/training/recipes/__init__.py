"""Published ways to train after a cut, as settings files for `secateur heal --config`."""

from importlib.resources import files
from pathlib import Path

from secateur.errors import UserError
from secateur.registry import unknown


def recipe_names() -> list[str]:
    """Names of the recipes that ship with secateur."""
    folder = files("secateur.training.recipes")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name[-5:] == ".yaml")


def recipe(name: str) -> Path:
    """The settings file of a recipe; UserError for an unknown one."""
    if name not in recipe_names():
        raise UserError(unknown("recipe", name, recipe_names()))
    return Path(str(files("secateur.training.recipes") / f"{name}.yaml"))
