"""Image classifiers of Hugging Face transformers: `hf:NAME_OR_DIR`. Needs `transformers`."""

import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import nn

from secateur.errors import Advice, UserError, short
from secateur.storage.library import Arguments, is_argument, libraries, tuples
from secateur.storage.network import hub_is_out_of_reach
from secateur.storage.untrusted.bounds import UNBUILDABLE

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of Pillow's numbered filters."""

NOT_ARGUMENTS = {"transformers_version", "architectures", "model_type", "id2label", "label2id"}

WRAPPERS = ("timm_wrapper", "timm_backbone")
"""Model types whose modules come from another library, which may fetch their weights."""
FETCHING = ("backbone", "pretrained", "name_or_path", "auto_map", "architecture", "revision")
"""Parts of the names of settings that name something to be fetched or run."""

Config = Any
"""A transformers configuration; the package is optional, so its type is too."""


class HfModels:
    """transformers.AutoModelForImageClassification, never with code from the hub."""

    title = "hf:NAME_OR_DIR"
    by_name = True

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """The classifier and the preprocessing of its image processor."""
        transformers = _transformers()
        if not Path(name).is_dir():
            _check_reachable(name)
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            if pretrained:
                model = _pretrained(transformers, name, config, num_classes, img_size)
            else:
                if num_classes is not None:
                    config.num_labels = num_classes
                if img_size is not None:
                    config.image_size = img_size
                model = transformers.AutoModelForImageClassification.from_config(config)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"transformers cannot load '{name}': {_first_line(error)}.") from error
        size = _square(config.image_size)
        configuration = {"input_size": (config.num_channels, *size)}
        model.__dict__["pretrained_cfg"] = configuration | _processing(transformers, name)
        found: nn.Module = model
        return found

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """The model type and the plain values of its configuration."""
        config: Config = getattr(model, "config", None)
        if not type(model).__module__.startswith("transformers.models."):
            return
        values = config.to_diff_dict()
        arguments = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if key not in NOT_ARGUMENTS and is_argument(value)
        }
        yield str(config.model_type), {**arguments, "num_labels": int(config.num_labels)}

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """The stock classifier of a model type; configurations name neither code nor weights."""
        values = {key: tuples(value) for key, value in arguments.items()}
        if name in WRAPPERS or Path(name).exists():
            raise UserError(f"'{name}' is no model type of transformers that a file may name.")
        if odd := sorted(k for k in values if k.startswith("_") or any(p in k for p in FETCHING)):
            raise UserError(f"'{odd[0]}' is no setting of a configuration that a file may make.")
        transformers = _transformers()
        try:
            config = transformers.AutoConfig.for_model(name, **values)
            if any(getattr(config, key, None) for key in ("backbone", "backbone_config")):
                raise UserError(
                    f"'{name}' is built around another model, which a file cannot name."
                )
            model: nn.Module = transformers.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False
            )
        except UNBUILDABLE as error:
            raise UserError(
                f"transformers cannot build a '{name}' with {short(values)}: {_first_line(error)}."
            ) from error
        return model


def _transformers() -> ModuleType:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise UserError(
            "models called hf:NAME need the transformers package: pip install transformers."
        ) from error


def _pretrained(
    transformers: ModuleType, name: str, config: Config, classes: int | None, size: int | None
) -> nn.Module:
    if size is not None or classes not in (None, config.num_labels):
        raise UserError(
            f"the weights of '{name}' have {config.num_labels} classes and their own image size: "
            "leave out --num-classes and --img-size, or pass --checkpoint FILE."
        )
    loaded = transformers.AutoModelForImageClassification.from_pretrained(
        name, config=config, trust_remote_code=False, output_loading_info=True
    )
    model: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise UserError(
            f"'{name}' is no trained image classifier: its weights lack {', '.join(missing[:3])}."
        )
    return model


def _processing(transformers: ModuleType, name: str) -> dict[str, object]:
    """Resize, crop and normalisation in timm's terms; empty with a warning if not recorded."""
    try:
        found: Any = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (ImportError, OSError, ValueError):
        warnings.warn(
            f"{name} does not say how its images are prepared; ImageNet's mean and standard "
            "deviation are assumed unless you give others",
            Advice,
            stacklevel=4,
        )
        return {}
    size = dict(found.size)
    crop = dict(found.crop_size) if getattr(found, "do_center_crop", False) else None
    edge = size.get("shortest_edge") or size.get("height")
    return {
        "interpolation": RESAMPLING[int(found.resample)],
        "crop_pct": min(1.0, crop["height"] / edge) if crop and edge else 1.0,
        "crop_mode": "center" if crop else "squash",
        "mean": tuple(found.image_mean),
        "std": tuple(found.image_std),
    }


def _check_reachable(name: str) -> None:
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    if reason := hub_is_out_of_reach():
        raise UserError(f"cannot download 'hf:{name}': {reason}; pass a local directory instead.")


def _square(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return short(lines[0]).rstrip(".") if lines else type(error).__name__


libraries.register("hf")(HfModels())
