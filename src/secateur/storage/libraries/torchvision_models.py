"""torchvision's classification models: `torchvision:NAME`."""

from collections.abc import Iterator
from difflib import get_close_matches
from urllib.error import URLError

import torchvision
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from secateur.errors import UserError, short
from secateur.storage.library import Argument, Arguments, libraries, tuples
from secateur.storage.untrusted.bounds import UNBUILDABLE

ALLOWED = frozenset({"num_classes", "image_size"})
CLASS = "VisionTransformer"
"""The class that makes torchvision's plain vision transformers, whatever their sizes."""
SIZES = ("image_size", "patch_size", "hidden_dim", "mlp_dim", "num_classes")
CLASS_ALLOWED = frozenset({*SIZES, "num_layers", "num_heads"})
MARK = "torchvision_built_from"
"""torchvision keeps no name in its models, so ours do."""


class TorchvisionModels:
    """Models by torchvision's own registry and weights."""

    title = "torchvision:NAME"
    by_name = True

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """A model with torchvision's default weights and their preprocessing, if `pretrained`."""
        _check_name(name)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        classes = len(weights.meta["categories"])
        if pretrained and (img_size is not None or num_classes not in (None, classes)):
            raise UserError(
                f"torchvision's weights for '{name}' have {classes} classes and their own image "
                "size: leave out --num-classes and --img-size, or pass --checkpoint FILE."
            )
        arguments: dict[str, Argument] = {"num_classes": num_classes or classes}
        if img_size is not None:
            arguments["image_size"] = img_size
        model = _pretrained(name) if pretrained else self.skeleton(name, arguments)
        config = _configuration(weights.transforms(), img_size)
        model.__dict__.update({MARK: (name, arguments), "pretrained_cfg": config})
        return model

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """By the mark that `open` leaves, or by the sizes that a vision transformer shows."""
        if MARK in model.__dict__:
            yield model.__dict__[MARK]
        if type(model) is VisionTransformer:
            layers = [m for m in model.modules() if isinstance(m, EncoderBlock)]
            sizes: dict[str, Argument] = {key: int(getattr(model, key)) for key in SIZES}
            if isinstance(head := getattr(model.heads, "head", None), nn.Linear):
                sizes["num_classes"] = head.out_features
            if layers:
                yield CLASS, {**sizes, "num_layers": len(layers), "num_heads": layers[0].num_heads}

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """`torchvision.models.get_model` for a listed name, classes and image size.

        For the class of its plain vision transformers, the sizes of any of them.
        """
        if name != CLASS:
            _check_name(name)
        if odd := sorted(set(arguments) - (CLASS_ALLOWED if name == CLASS else ALLOWED)):
            raise UserError(f"'{odd[0]}' is no argument of torchvision's '{name}' to be set here.")
        if odd := sorted(k for k, v in arguments.items() if type(v) is not int):
            raise UserError(f"argument '{odd[0]}' of torchvision's '{name}' is no whole number.")
        values = {key: tuples(value) for key, value in arguments.items()}
        try:
            if name == CLASS:
                named: nn.Module = VisionTransformer(**values)
                return named
            model: nn.Module = torchvision.models.get_model(name, weights=None, **values)
        except UNBUILDABLE as error:
            raise UserError(
                f"torchvision cannot build '{name}' with {values}: {short(error)}."
            ) from error
        return model


def _pretrained(name: str) -> nn.Module:
    try:
        model: nn.Module = torchvision.models.get_model(name, weights="DEFAULT")
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision could not download weights for '{name}' ({error}); pass --checkpoint "
            "FILE to load the weights from a local file."
        ) from error
    return model


def _check_name(name: str) -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(repr(match) for match in close)}?" if close else (
            "torchvision.models.list_models() lists them."
        )  # fmt: skip
        raise UserError(f"unknown torchvision model '{short(name)}'; {hint}")


def _configuration(transforms: object, img_size: int | None) -> dict[str, object]:
    """torchvision's preset of transforms in the terms of timm's data configuration."""
    crop, resize = (int(getattr(transforms, key)[0]) for key in ("crop_size", "resize_size"))
    size = img_size or crop
    return {
        "input_size": (3, size, size),
        "interpolation": getattr(transforms, "interpolation").value,  # noqa: B009
        "crop_pct": crop / resize,
        "crop_mode": "center",
        "mean": tuple(getattr(transforms, "mean")),  # noqa: B009
        "std": tuple(getattr(transforms, "std")),  # noqa: B009
    }


libraries.register("torchvision")(TorchvisionModels())
