"""A study as a YAML file: what is varied, on which images, and where to find what is wrong."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.allocation.budget import CostBudget, parse_budget
from secateur.devices import usable_device
from secateur.errors import UserError, short
from secateur.measurement.request import Clock
from secateur.measurement.runtimes import require
from secateur.methods.checked import known_values
from secateur.presets import load_preset
from secateur.registry import unknown
from secateur.study.structures import StructureName, score_names
from secateur.surgery.repair import Repair
from secateur.textfiles import Place, parse_yaml, read_text
from secateur.textfiles import lines_of as lines_in


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """A model as `secateur.load` takes it."""

    source: str
    checkpoint: str | None = None
    num_classes: int | None = None
    img_size: int | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    calibration: str | None = None
    evaluation: str | None = None


class ImagesSpec(_Strict):
    """Images: a path or data string, and how many of them (None: all).

    Evaluation images are the same for every cell; calibration images are drawn anew per seed.
    """

    data: str | None = None
    limit: int | None = Field(default=None, ge=1)


class LatencySpec(_Strict):
    """Where latency is measured, for how many seconds per shape, and by which clock.

    `processor` counts the time that this process had a core, for machines that do other work.
    """

    runtime: str = "eager"
    batch: int = Field(default=1, ge=1)
    seconds: float = Field(default=1.0, gt=0)
    clock: Clock = "wall"


class Study(_Strict):
    """A grid. Every list is one factor; a model may name images of its own.

    `presets` are rows beside the grid of `structures` and `scores`: each prunes as
    `secateur.prune` would, with the groups, the method and the repair of the preset.
    `repair` of dropped layers: `none`, their `mean`, and for `least_squares` the affine replacement
    (the mean where that is refused). Every cell runs on `threads` CPU threads,
    or on another `device`.
    """

    title: str
    models: dict[str, ModelSpec] = Field(min_length=1)
    calibration: ImagesSpec = ImagesSpec(limit=256)
    evaluation: ImagesSpec = ImagesSpec()
    structures: tuple[StructureName, ...] = Field(default=(), min_length=1)
    scores: tuple[str, ...] = Field(default=(), min_length=1)
    presets: tuple[str, ...] = Field(default=(), min_length=1)
    budgets: tuple[str, ...] = Field(min_length=1)
    repair: tuple[Repair, ...] = Field(default=("none",), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    latency: LatencySpec | None = LatencySpec()
    threads: int = Field(default=1, ge=1)
    batch_size: int = Field(default=32, ge=1)
    device: str = "cpu"

    def settings(self) -> dict[str, Any]:
        """All that a cell's numbers depend on beside its place in the grid."""
        kept = {"models", "calibration", "evaluation", "threads", "batch_size"}
        # WHY: stores begun before there was a choice of devices know of none.
        kept |= {"device"} if self.device != "cpu" else set()
        return self.model_dump(mode="json", include=kept)


def read_study(path: Path, only: Sequence[str] | None = None) -> Study:
    """The study in a YAML file; UserError with file and line for whatever is wrong in it.

    `only` keeps some of its models. `$NAME` in paths takes a variable of the environment; a
    relative path that exists beside the file is taken from there.
    """
    what = f"study '{path}'"
    text = read_text(path, what)
    fields = parse_yaml(text, what)
    if not isinstance(fields, dict):
        raise UserError(f"study '{path}' is empty or no mapping; see docs/howto.md for an example.")
    lines = lines_in(text, what)
    try:
        study = Study.model_validate(_short_models(fields))
    except ValidationError as error:
        raise UserError(_sentence(path, error, lines)) from error
    if only is not None:
        study = study.model_copy(update={"models": _chosen(path, study, only)})
    _check(path, study, lines)
    return study.model_copy(update={"models": _at_home(path, study, lines)} | _images(path, study))


def _chosen(path: Path, study: Study, only: Sequence[str]) -> dict[str, ModelSpec]:
    for name in only:
        if name not in study.models:
            raise UserError(f"{path}: {unknown('model', name, list(study.models))}")
    if not only:
        raise UserError(f"no model was named; those of {path} are {', '.join(study.models)}.")
    return {name: spec for name, spec in study.models.items() if name in only}


def at(path: Path, lines: Mapping[Place, int], *place: str | int) -> str:
    """`study.yaml, line 7`: where a key or an item stands."""
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return f"{path}, line {lines[place[:length]]}"
    return str(path)


def lines_of(path: Path) -> dict[Place, int]:
    """Line numbers of all keys and items of a study file."""
    what = f"study '{path}'"
    return lines_in(read_text(path, what), what)


def _short_models(fields: dict[str, Any]) -> dict[str, Any]:
    """`name: timm:...` is short for `name: {source: timm:...}`."""
    models = fields.get("models")
    if not isinstance(models, dict):
        return fields
    long = {k: {"source": v} if isinstance(v, str) else v for k, v in models.items()}
    return fields | {"models": long}


def _sentence(path: Path, error: ValidationError, lines: Mapping[Place, int]) -> str:
    # WHY: a key that is written wrong is missing as well, and its wrong form says more.
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    place: Place = tuple(part for part in first["loc"] if part != "[key]")
    where, name = at(path, lines, *place), short(".".join(str(part) for part in place))
    if first["type"] == "extra_forbidden":
        known = Study if len(place) == 1 else _model_at(place)
        return f"{where}: {unknown('key', str(place[-1]), list(known.model_fields))}"
    if first["type"] == "literal_error" and isinstance(place[0], str):
        key = str(place[-1]) if place[0] == "latency" else place[0]
        fields = (LatencySpec if place[0] == "latency" else Study).model_fields
        known_words = known_values(fields[key].annotation)
        return f"{where}: {unknown(key.rstrip('s'), str(first['input']), known_words)}"
    if first["type"] == "too_short":
        return f"{where}: '{name}' is empty, so the grid has no cell; name at least one."
    if first["type"] == "missing":
        return f"{where}: the key '{name}' is missing."
    return f"{where}: '{name}': {first['msg'][0].lower()}{short(first['msg'][1:])}."


def _model_at(place: Place) -> type[BaseModel]:
    models: dict[str, type[BaseModel]] = {"models": ModelSpec, "latency": LatencySpec}
    return models.get(str(place[0]), ImagesSpec)


def _check(path: Path, study: Study, lines: Mapping[Place, int]) -> None:
    """What can be wrong beyond types: unknown scores, budgets, runtimes, missing images, twins."""
    if not study.presets or study.scores or study.structures:
        for key in ("structures", "scores"):
            if not getattr(study, key):
                raise UserError(f"{path}: the key '{key}' is missing.")
    for number, preset in enumerate(study.presets):
        try:
            load_preset(preset)
        except UserError as error:
            raise UserError(f"{at(path, lines, 'presets', number)}: {error}") from error
    known = score_names()
    for number, score in enumerate(study.scores):
        if score not in known:
            raise UserError(
                f"{at(path, lines, 'scores', number)}: {unknown('score', score, known)}"
            )
    for number, budget in enumerate(study.budgets):
        where = at(path, lines, "budgets", number)
        try:
            parsed = parse_budget(budget)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if not isinstance(parsed, CostBudget) or parsed.unit == "ms":
            raise UserError(
                f"{where}: budget '{budget}' does not fit every structure; the budgets of a study "
                "are costs such as '80% macs' or '3M params'."
            )
    for factor in ("structures", "scores", "presets", "budgets", "repair", "seeds"):
        values = getattr(study, factor)
        for number, value in enumerate(values):
            if value in values[:number]:
                where = at(path, lines, factor, number)
                raise UserError(
                    f"{where}: '{short(value)}' stands in {factor} twice; name it once."
                )
    try:
        usable_device(study.device)
    except UserError as error:
        raise UserError(f"{at(path, lines, 'device')}: {error}") from error
    if study.latency is not None:
        try:
            require(study.latency.runtime, study.device)
        except UserError as error:
            raise UserError(f"{at(path, lines, 'latency', 'runtime')}: {error}") from error
        if study.latency.clock == "processor" and study.device != "cpu":
            raise UserError(
                f"{at(path, lines, 'latency', 'clock')}: processor time says nothing of the "
                f"device '{study.device}'; measure by the wall clock."
            )
        if study.latency.clock == "processor" and study.threads > 1:
            raise UserError(
                f"{at(path, lines, 'latency', 'clock')}: processor time adds up over "
                f"{study.threads} threads; measure with one thread, or by the wall clock."
            )
    for name, model in study.models.items():
        for use, own, common in (
            ("calibration", model.calibration, study.calibration),
            ("evaluation", model.evaluation, study.evaluation),
        ):
            if own is None and common.data is None:
                raise UserError(
                    f"{at(path, lines, 'models', name)}: no {use} images; give "
                    f"{use}: {{data: ...}} for all models, or a path of its own for this one."
                )


def _path(path: Path, text: str | None) -> str | None:
    if text is None:
        return None
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        raise UserError(
            f"{path}: '{short(text)}' names a variable that is not set in the environment."
        )
    beside = path.parent / expanded
    return str(beside) if os.path.exists(beside) else expanded


def _at_home(path: Path, study: Study, lines: Mapping[Place, int]) -> dict[str, ModelSpec]:
    """The models with their paths resolved."""
    found = {}
    for name, model in study.models.items():
        try:
            changes = {
                field: _path(path, getattr(model, field))
                for field in ("source", "checkpoint", "calibration", "evaluation")
            }
        except UserError as error:
            raise UserError(f"{at(path, lines, 'models', name)}: {error}") from error
        found[name] = model.model_copy(update=changes)
    return found


def _images(path: Path, study: Study) -> dict[str, ImagesSpec]:
    return {
        use: spec.model_copy(update={"data": _path(path, spec.data)})
        for use, spec in (("calibration", study.calibration), ("evaluation", study.evaluation))
    }
