"""How a training run goes: everything that may be said in YAML, checked, with defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur.errors import UserError, short
from secateur.registry import unknown
from secateur.textfiles import parse_mapping, read_text
from secateur.training.run_length import RunLength, parse_run_length

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

FREE = ("workers", "log_every", "checkpoint_seconds", "trackers", "compile", "kept_views")
"""Settings that may differ when a run goes on: they change nothing of what is learned."""


class Strict(BaseModel):
    """Unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSettings(Strict):
    """`name` is one of timm's optimizers; `clip` is the largest norm of the gradient.

    `layer_decay` multiplies the learning rate once more for every layer further from the output.
    """

    name: str = "adamw"
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 0.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Positive | None = 1.0


class ScheduleSettings(Strict):
    """`name` is one of timm's schedules; `warmup` and `least` are shares of budget and rate."""

    name: Literal["cosine", "tanh", "poly"] = "cosine"
    warmup: Share = 0.1
    least: Share = 0.0


class AugmentSettings(Strict):
    """What timm.data does to images of files; tensors are taken as they are, except for mixing.

    A crop of at least `least_area` of the image, by chance its mirror image, `auto` a policy such
    as "rand-m9-n2-mstd0.5", `erase` the chance that a patch is erased. `mixup` and `cutmix` are
    the parameters of their Beta distributions (0: off), used for the first `mix_until` of the
    budget; both mix the images of one process with one another. Every image stands `repeats` times
    in a batch, each time augmented otherwise (Hoffer et al., arXiv 1901.09335); an epoch has as
    many images as ever, and so fewer different ones. With `views`, an image is augmented in that
    many ways only, which take turns: what a teacher says of each can be kept, see `answers`.
    """

    least_area: Annotated[float, Field(gt=0, le=1)] = 0.7
    flip: bool = True
    color_jitter: NotNegative = 0.0
    auto: str | None = None
    erase: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_until: Share = 1.0
    repeats: Count = 1
    views: Count | None = None


class TrainSettings(Strict):
    """A training run. At most one of `steps`, `epochs` and `time` ("5min"); else 10 epochs.

    `batch_size` counts the images of one optimizer step over all processes, which see them in
    `accumulate` parts. `ema` is the decay of the running average of the weights (None: none).
    `checks` is how often the held-out images are judged, `keep` whether the best judged weights
    come out, those before training among them, or the last ones (or their running average,
    whichever is judged better). `checkpoint_seconds` apart, and after each check, a checkpoint is
    written. `drop_path` is the chance of leaving out an update of the last block, see
    `secateur.training.updates.stochastic_depth`. `kept_views` is a folder in which the augmented
    images are kept, to be read when a view of an image comes again, also by other runs; it needs
    `augment.views`.
    """

    steps: Count | None = None
    epochs: Positive | None = None
    time: str | None = None
    batch_size: Count = 64
    accumulate: Count = 1
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    augment: AugmentSettings = AugmentSettings()
    label_smoothing: Share = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    keep: Literal["best", "last"] = "best"
    checks: Annotated[int, Field(ge=0)] = 5
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Count = 10
    checkpoint_seconds: NotNegative = 300.0
    kept_views: Path | None = None
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)

    @field_validator("precision", mode="before")
    @classmethod
    def _no_in_yaml(cls, value: object) -> object:
        # WHY: YAML reads a bare no as false.
        return "no" if value is False else value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [key for key in ("steps", "epochs", "time") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; give one of them")
        if self.time is not None:
            parse_run_length(self.time, "time")
        return self

    @model_validator(mode="after")
    def _views_to_keep(self) -> Self:
        if self.kept_views is not None and self.augment.views is None:
            raise ValueError(
                "kept_views needs a fixed number of views of each image; set augment.views, such "
                "as 4"
            )
        return self

    def length(self, images: int) -> RunLength:
        """How long to train on that many images."""
        if self.time is not None:
            return parse_run_length(self.time, "time")
        if self.steps is not None:
            return RunLength(text=_counted(self.steps, "step"), steps=self.steps)
        epochs = self.epochs or 10
        steps = max(1, -(-round(epochs * images) // self.batch_size))
        return RunLength(text=_counted(epochs, "epoch"), steps=steps)


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


S = TypeVar("S", bound=BaseModel)


def read_settings(
    kind: type[S], file: Path | None = None, changes: Mapping[str, Any] | None = None
) -> S:
    """Settings from a YAML file (the defaults without one), then the changes, None left out.

    Keys of changes may be dotted: {"optimizer.learning_rate": 3e-4}. A change of steps, epochs or
    time replaces all three. UserError names the key that is unknown or wrong.
    """
    values: dict[str, Any] = {}
    if file is not None:
        what = f"settings file '{file}'"
        values = parse_mapping(read_text(file, what), what)
    given = {key: value for key, value in (changes or {}).items() if value is not None}
    lengths = {"steps", "epochs", "time"}
    if lengths & given.keys():
        values = {key: value for key, value in values.items() if key not in lengths}
    for key, value in given.items():
        place = values
        *parents, last = key.split(".")
        for parent in parents:
            inner = place.get(parent) or {}
            if not isinstance(inner, dict):
                raise UserError(f"{file or 'settings'}: '{parent}' holds no names with values.")
            place[parent] = dict(inner)
            place = place[parent]
        place[last] = value
    where = "settings" if file is None else str(file)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {_first(kind, error)}") from error


def _first(kind: type[BaseModel], error: ValidationError) -> str:
    """The first thing wrong, with the known keys where one is unknown."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown("key", where, sorted(_keys(kind)))
    sentence = first["msg"].removeprefix("Value error, ")
    return f"'{short(where)}': {sentence.lower()}." if where else f"{sentence}."


def _keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _keys(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found
