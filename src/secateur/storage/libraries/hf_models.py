"""Vision models of Hugging Face transformers: `hf:NAME_OR_DIR`. Needs `transformers`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from secateur.errors import UserError, short
from secateur.models.family import families, family_of
from secateur.storage.base import Base
from secateur.storage.directories.plain import Uniform, filled
from secateur.storage.libraries._hf_config import flat, nested, plain_arguments
from secateur.storage.libraries._hf_images import preprocessing_of, write_processor
from secateur.storage.library import Argument, Arguments, libraries
from secateur.storage.meta import on_meta
from secateur.storage.network import hub_is_out_of_reach
from secateur.storage.untrusted.bounds import UNBUILDABLE

ALIASES = {"num_classes": "num_labels", "img_size": "image_size"}
"""What the rest of the program calls them."""

WRAPPERS = ("timm_wrapper", "timm_backbone")
"""Model types whose modules come from another library, which may fetch their weights."""
IMAGES = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
"""What such a model's configuration says of images, in timm's own terms."""
FETCHING = ("backbone", "pretrained", "name_or_path", "auto_map", "architecture", "revision")
"""Parts of the names of settings that name something to be fetched or run."""

FAILURES = (ImportError, OSError, RuntimeError, ValueError, KeyError, StrictDataclassError)

Config = Any
"""A transformers configuration; the package is optional, so its type is too."""


class HfModels:
    """Classes of transformers that a family states, and its image classifiers.

    Never with code from the hub.
    """

    title = "hf:NAME_OR_DIR, hf:NAME_OR_DIR#vision_model"
    by_name = True

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """The model of a directory or repository, with the preprocessing of its image processor."""
        transformers = _transformers()
        name, _, part = name.partition("#")
        if not Path(name).is_dir():
            _check_reachable(name)
        try:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            if config.model_type == "timm_wrapper" and pretrained:
                return _of_timm(transformers, config, name)
            try:
                named = (config.architectures or [""])[0]
                cls = _tower(config, part) if part else _class_of(transformers, config, named)
            except UserError as error:
                raise UserError(f"{name} cannot be read: {error}.") from error
            config = config.vision_config if part else config
            if pretrained:
                model = _pretrained(cls, name, config, num_classes, img_size)
            else:
                sizes = {"num_labels": num_classes, "image_size": img_size}
                for key, value in sizes.items():
                    if value is not None:
                        setattr(_images_of(config) if key == "image_size" else config, key, value)
                model = cls._from_config(config)
        except FAILURES as error:
            raise UserError(f"transformers cannot load '{name}': {_first_line(error)}.") from error
        _give_images_(model, preprocessing_of(transformers, name))
        return model

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """The model type, the class and the plain values of its configuration."""
        config: Config = getattr(model, "config", None)
        if not type(model).__module__.startswith("transformers.models."):
            return
        arguments: dict[str, Argument] = dict(flat(config.to_diff_dict()))
        arguments["num_labels"] = int(config.num_labels)
        labels = [str(config.id2label[i]) for i in range(len(config.id2label))]
        if labels != [f"LABEL_{i}" for i in range(len(labels))]:
            arguments["id2label"] = [*labels]
        known = (model.__dict__.get("pretrained_cfg") or {}).get("input_size")
        if known and list(known[1:]) != list(_square(_images_of(config).image_size)):
            arguments["input_size"] = [int(side) for side in known]
        yield str(config.model_type), arguments | {"class": type(model).__name__}

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """The stock model of a type and class; configurations name neither code nor weights."""
        values = {ALIASES.get(key, key): value for key, value in arguments.items()}
        cls, size = values.pop("class", ""), values.pop("input_size", None)
        labels = values.pop("id2label", None)
        if name in WRAPPERS or Path(name).exists():
            raise UserError(f"'{name}' is no model type of transformers that a file may name.")
        parts = {key: [part for part in key.split(".") if part] for key in values}
        for key, path in parts.items():
            if any(part.startswith("_") or any(p in part for p in FETCHING) for part in path):
                raise UserError(f"'{key}' is no setting of a configuration that a file may make.")
        transformers = _transformers()
        try:
            config = transformers.AutoConfig.for_model(name, **nested(values))
            if isinstance(labels, list) and len(labels) == config.num_labels:
                config.id2label = {i: str(label) for i, label in enumerate(labels)}
                config.label2id = {str(label): i for i, label in enumerate(labels)}
            if any(getattr(config, key, None) for key in ("backbone", "backbone_config")):
                raise UserError(
                    f"'{name}' is built around another model, which a file cannot name."
                )
            model: nn.Module = _class_of(transformers, config, str(cls))._from_config(config)
        except (*UNBUILDABLE, StrictDataclassError) as error:
            raise UserError(
                f"transformers cannot build a '{name}' with {short(values)}: {_first_line(error)}."
            ) from error
        if isinstance(size, list):
            model.__dict__["pretrained_cfg"] = {"input_size": tuple(size)}
        return model

    def plain(self, model: nn.Module, base: Base, shape: Uniform, folder: Path) -> str:
        """Write a directory for `from_pretrained`, weights and image processor included."""
        arguments = plain_arguments(model, base, shape)
        with on_meta():
            stock = self.skeleton(base.name, arguments)
        stock = filled(model, stock, shape, lambda: self.skeleton(base.name, arguments))
        host: Any = stock
        host.save_pretrained(folder)
        write_processor(folder, base.preprocessing)
        return str(folder)


def _transformers() -> ModuleType:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise UserError(
            "models called hf:NAME need the transformers package: pip install 'secateur[hf]'."
        ) from error


def _class_of(transformers: ModuleType, config: Config, name: str) -> Any:
    """The class of that name if a family states it, else the image classifier of the type.

    UserError for other classes, with those that could be read instead.
    """
    stated, classifiers = _stated(), transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    known = classifiers.get(type(config), ())
    for cls in known if isinstance(known, tuple) else (known,):
        if cls.__name__ == name or not name:
            return cls
    if (module := stated.get(name)) is not None:
        cls = getattr(import_module(module), name)
        if isinstance(config, cls.config_class):
            return cls
    towers = ", ".join(_towers(config))
    advice = f"; its image tower can be read: write '#vision_model' behind it ({towers})"
    raise UserError(
        f"it holds a {name or config.model_type}, which is neither an image classifier nor an "
        f"image encoder that secateur reads{advice if towers else ''}"
    )


def _stated() -> dict[str, str]:
    """The classes of transformers that families state, with their modules."""
    hosts = [host.partition(":") for _, f in families.items() for host in f.statement.hosts]
    return {cls: module for module, _, cls in hosts if module.startswith("transformers.models.")}


def _towers(config: Config) -> dict[str, Any]:
    """The classes by which the image tower of a model of several can be read, the barest first."""
    tower = type(getattr(config, "vision_config", None))
    found = {name: getattr(import_module(module), name) for name, module in _stated().items()}
    own = (name for name, cls in found.items() if cls.config_class is tower)
    return {name: found[name] for name in sorted(own, key=len)}


def _tower(config: Config, part: str) -> Any:
    """The class of a part: `vision_model`, or the name of the class; UserError for others."""
    towers = _towers(config)
    if towers and part == "vision_model":
        return next(iter(towers.values()))
    if part in towers:
        return towers[part]
    known = ", ".join(["vision_model", *towers]) if towers else "no part that secateur reads"
    raise UserError(f"a {config.model_type} has no part '{short(part)}'; it has: {known}")


def _pretrained(
    cls: Any, name: str, config: Config, classes: int | None, size: int | None
) -> nn.Module:
    if size is not None or classes not in (None, config.num_labels):
        raise UserError(
            f"the weights of '{name}' have {config.num_labels} classes and their own image size: "
            "leave out --num-classes and --img-size, or pass --checkpoint FILE."
        )
    # WHY: calibration and repair need full precision, whatever the weights were stored in.
    with _quiet():
        loaded = cls.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        raise UserError(
            f"'{name}' is no trained {cls.__name__}: its weights lack {', '.join(missing[:3])}."
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor tables of tensors that are left out; those that lack are told apart."""
    logging = import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _of_timm(transformers: ModuleType, config: Config, name: str) -> nn.Module:
    """The model of timm that transformers only wraps, with its weights and its images."""
    cls = transformers.TimmWrapperForImageClassification
    model: nn.Module = _pretrained(cls, name, config, None, None).get_submodule("timm_model")
    images = getattr(config, "pretrained_cfg", None) or {}
    known = {key: images[key] for key in IMAGES if images.get(key) is not None}
    model.__dict__["pretrained_cfg"] = {**model.pretrained_cfg, **known}  # type: ignore[dict-item]
    return model


def _give_images_(model: nn.Module, found: dict[str, object]) -> None:
    """Keep how images are prepared where `Preprocessing.of` looks; of the size that fits."""
    images = _images_of(model.config)
    given: Any = found.pop("input_size", None)
    size = getattr(images, "image_size", None)
    own = (int(getattr(images, "num_channels", 3)), *_square(size)) if size else None
    model.__dict__["pretrained_cfg"] = {"input_size": given or own or (3, 224, 224)} | found
    if any(family.matches(model) for _, family in families.items()):
        # WHY: only some encoders take images of another size than their configuration's.
        model.__dict__["pretrained_cfg"]["input_size"] = family_of(model).read(model).input_size


def _images_of(config: Config) -> Config:
    """The part of a configuration that tells of images."""
    return getattr(config, "vision_config", config)


def _check_reachable(name: str) -> None:
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    if reason := hub_is_out_of_reach():
        raise UserError(f"cannot download 'hf:{name}': {reason}; pass a local directory instead.")


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return short(lines[0]).rstrip(".") if lines else type(error).__name__


libraries.register("hf")(HfModels())
