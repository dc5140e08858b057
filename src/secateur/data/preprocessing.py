"""How an image file becomes the input of a model.

Shape suffixes: C channels, H height, W width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Self

from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from secateur.errors import UserError, short

Transform = Callable[[Image.Image], Tensor]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
LARGEST_SIDE = 4096
"""In pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Resize, crop and normalisation, in the terms of timm's data configuration.

    `input_size` is (channels, height, width); `crop_pct` is the share of the resized image that
    the crop keeps; `mean` and `std` are per channel, for pixel values between 0 and 1.
    Raises UserError when a value is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    input_size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise UserError(f"bad preprocessing: {problem}.")

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Read the preprocessing `model` was trained with from its configuration.

        The image size and the number of channels are those of the model itself, which may have
        been built with others than its configuration names. A model without a configuration
        gets timm's ImageNet defaults. Raises UserError when no image size can be found.
        """
        config = getattr(model, "pretrained_cfg", None) or {}
        named = {key: getattr(model, f"image_{key}", None) for key in ("mean", "std")}
        named = {key: value for key, value in named.items() if value is not None}
        config = named | ({"crop_pct": 1.0} if named else {}) | config
        input_size = _input_size(model, config)
        resolved = resolve_data_config(pretrained_cfg={**config, "input_size": input_size})
        return cls(
            input_size=input_size,
            interpolation=resolved["interpolation"],
            crop_pct=float(resolved["crop_pct"]),
            crop_mode=resolved["crop_mode"],
            mean=_per_channel(tuple(resolved["mean"]), input_size[0]),
            std=_per_channel(tuple(resolved["std"]), input_size[0]),
        )

    def override(
        self,
        *,
        mean: float | tuple[float, ...] | None = None,
        std: float | tuple[float, ...] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        image_size: int | None = None,
    ) -> Self:
        """Return a copy with the given values replaced; one `mean` or `std` is for all channels."""
        channels, height, width = self.input_size
        if image_size is not None:
            height = width = image_size
        return replace(
            self,
            input_size=(channels, height, width),
            mean=self.mean if mean is None else _spread(mean, channels),
            std=self.std if std is None else _spread(std, channels),
            crop_pct=self.crop_pct if crop_pct is None else crop_pct,
            interpolation=self.interpolation if interpolation is None else interpolation,
        )

    @property
    def image_mode(self) -> str:
        """The Pillow mode an image file is converted to: grey "L" or "RGB".

        Raises UserError for a model of other channels, which image files do not have.
        """
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise UserError(
                f"the model takes images of {channels} channels, but image files have 1 or 3; give "
                "tensors [n, C, H, W] or a Dataset of them."
            )
        return "L" if channels == 1 else "RGB"

    def transform(self) -> Transform:
        """Return the evaluation transform from an image in `image_mode` to float32 [C, H, W].

        Raises UserError as `image_mode` does.
        """
        _ = self.image_mode
        transform: Transform = create_transform(
            input_size=self.input_size,
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return transform

    def to_json(self) -> dict[str, object]:
        """Return plain lists, numbers and strings for a JSON file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Self:
        """Read what `to_json` wrote; raise UserError when a key is missing, odd or unknown."""
        try:
            return TypeAdapter(cls).validate_python(dict(value))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"bad preprocessing: '{short(where)}': {first['msg'].lower()}."
            ) from error


def _problem(it: Preprocessing) -> str | None:
    """The first thing wrong with `it`, in words."""
    channels = it.input_size[0]
    if min(it.input_size) < 1:
        return f"the input size {it.input_size} is not positive"
    if max(it.input_size) > LARGEST_SIDE:
        return f"the input size {it.input_size} is above {LARGEST_SIDE} pixels"
    if it.interpolation not in INTERPOLATIONS:
        return (
            f"unknown interpolation '{short(it.interpolation)}'; known: {', '.join(INTERPOLATIONS)}"
        )
    if it.crop_mode not in CROP_MODES:
        return f"unknown crop mode '{short(it.crop_mode)}'; known: {', '.join(CROP_MODES)}"
    if not 0 < it.crop_pct <= 1:
        return f"crop_pct is a share between 0 and 1, not {it.crop_pct}"
    for name, values in (("mean", it.mean), ("std", it.std)):
        if len(values) != channels:
            return f"{name} has {len(values)} values for {channels} channels"
        if not all(math.isfinite(value) for value in values):
            return f"{name} is not finite: {short(values)}"
    if min(it.std) <= 0:
        return f"std must be positive, not {short(it.std)}"
    return None


def _input_size(model: nn.Module, config: Mapping[str, object]) -> tuple[int, int, int]:
    """(channels, height, width) of the patch embedding, or else of the configuration."""
    configured = config.get("input_size")
    patch_embed = getattr(model, "patch_embed", None)
    layers = patch_embed.modules() if isinstance(patch_embed, nn.Module) else ()
    first = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    image_size = getattr(patch_embed, "img_size", None) or getattr(model, "image_size", None)
    images = getattr(model, "config", None)
    images = getattr(images, "vision_config", images)
    if image_size is None and configured is None:
        image_size = getattr(images, "image_size", None)
    if isinstance(configured, tuple | list) and len(configured) == 3:
        channels, height, width = (int(size) for size in configured)
    elif image_size is not None:
        channels, height, width = int(getattr(images, "num_channels", 3)), 0, 0
    else:
        raise UserError(
            f"cannot tell the image size of {type(model).__name__}: it has neither a timm "
            "configuration nor an image_size; give the preprocessing explicitly."
        )
    if first is not None:
        channels = first.in_channels
    if isinstance(image_size, int):
        height = width = image_size
    elif image_size is not None:
        height, width = (int(size) for size in image_size)
    return channels, height, width


def _spread(values: float | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value for all channels, or the values as they are."""
    if isinstance(values, int | float):
        return (float(values),) * channels
    values = tuple(float(value) for value in values)
    return values * channels if len(values) == 1 else values


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """`values` where they fit; else their average, for a model rebuilt with fewer channels."""
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels
