"""Models that timm builds by name: `timm:NAME`, `timm:hf_hub:ORG/NAME`, `timm:local-dir:PATH`."""

import inspect
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from secateur.errors import UserError, short
from secateur.storage.base import Base
from secateur.storage.directories.plain import Uniform, filled
from secateur.storage.libraries._pooling import changed_pooling
from secateur.storage.library import Argument, Arguments, is_argument, libraries, tuples
from secateur.storage.meta import on_meta
from secateur.storage.network import hub_is_out_of_reach
from secateur.storage.untrusted.bounds import UNBUILDABLE, check_types

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
ADVICE = "pass --checkpoint FILE to load the weights from a local file"


class TimmModels:
    """timm's registry of architectures, its hub and its local directories."""

    title = "timm:NAME, timm:hf_hub:ORG/NAME or timm:local-dir:PATH"
    by_name = True
    changed = staticmethod(changed_pooling)

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """A model as timm makes it; its configuration carries the preprocessing."""
        given = {"num_classes": num_classes, "img_size": img_size}
        arguments = {key: value for key, value in given.items() if value is not None}
        if name.startswith("local-dir:"):
            _check_folder(name)
        elif name.startswith(SOURCES):
            _check_reachable(name, name.partition(":")[2].partition("@")[0], "config.json")
        else:
            _check_name(name)
        if not pretrained:
            return _create(name, arguments)
        if not name.startswith(SOURCES):
            _check_weights(name, num_classes)
        try:
            return _create(name, arguments, pretrained=True)
        except UserError:
            raise
        except Exception as error:
            # WHY: the download can fail in the ways of several network libraries.
            raise UserError(
                f"timm could not load pretrained weights for '{name}' ({_first_line(error)}); "
                f"{ADVICE}."
            ) from error

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """The architecture, with the arguments that timm keeps, then with those that show."""
        config = getattr(model, "pretrained_cfg", None)
        config = config if isinstance(config, dict) else {}
        architecture = config.get("architecture")
        if not isinstance(architecture, str) or not timm.is_model(architecture):
            return
        tagged = f"{architecture}.{config.get('tag')}" if config.get("tag") else architecture
        name = tagged if timm.models.is_model_pretrained(tagged) else architecture
        arguments = _kept_arguments(model)
        # WHY: a tag's configuration sets the classes, which need not be the model's any more.
        if isinstance(classes := getattr(model, "num_classes", None), int):
            arguments["num_classes"] = classes
        yield name, arguments
        with on_meta():
            plain = _create(name, arguments)
        yield name, arguments | _differences(model, plain)

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """`timm.create_model` for a registered name and arguments of the model's constructor."""
        if ":" in name or not timm.is_model(name):
            raise UserError(_unknown(name))
        known = _constructor_parameters(VisionTransformer)
        if set(arguments) - set(known):
            with on_meta():
                known = {**_constructor_parameters(type(_create(name, {}))), **known}
            if special := set(arguments) - set(known):
                raise UserError(f"'{min(special)}' is no argument of the constructor of '{name}'.")
        check_types(arguments, known)
        return _create(name, arguments)

    def plain(self, model: nn.Module, base: Base, shape: Uniform, folder: Path) -> str:
        """Write a directory for `timm.create_model("local-dir:…")`."""
        changes: dict[str, Argument] = {
            "embed_dim": shape.width,
            "depth": len(shape.blocks),
            "num_heads": shape.heads,
            "mlp_ratio": (shape.hidden + 0.5) / shape.width,
        }
        arguments = {**base.arguments, **changes}
        with on_meta():
            stock = self.skeleton(base.name, arguments)
        stock = filled(model, stock, shape, lambda: self.skeleton(base.name, arguments))
        images = {k: v for k, v in base.preprocessing.to_json().items() if k != "input_size"}
        classes = getattr(stock, "num_classes", 0)
        config = {
            "architecture": base.name.partition(".")[0],
            "num_classes": classes,
            "model_args": arguments,
            "pretrained_cfg": {**getattr(stock, "pretrained_cfg", {}), **images},
        }
        text = json.dumps(config, indent=2, default=str) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        save_file(dict(stock.state_dict()), folder / "model.safetensors")
        return f"local-dir:{folder}"


def _create(name: str, arguments: Arguments, *, pretrained: bool = False) -> nn.Module:
    values: dict[str, Any] = {key: tuples(value) for key, value in arguments.items()}
    if pretrained:
        return timm.create_model(name, pretrained=True, **values)
    try:
        return timm.create_model(name, pretrained=False, **values)
    except UNBUILDABLE as error:
        raise UserError(
            f"timm cannot build '{name}' with {short(values)}: {_first_line(error)}."
        ) from error


def _check_name(name: str) -> None:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(_unknown(name))
    tags = timm.list_pretrained(f"{architecture}.*")
    if "." in name and name not in tags:
        known = f"known: {', '.join(tags)}" if tags else f"it has none; write timm:{architecture}"
        raise UserError(f"timm has no weights called '{name}' of '{architecture}'; {known}.")


def _check_folder(name: str) -> None:
    folder = Path(name.partition(":")[2])
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model directory of timm: it has no config.json.")


def _check_weights(name: str, num_classes: int | None) -> None:
    """Refuse before any download what could not give a trained model."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for '{name}'; {ADVICE}.")
    if num_classes and num_classes != config.num_classes:
        raise UserError(
            f"the pretrained weights of '{name}' have {config.num_classes} classes, not "
            f"{num_classes}: the head would be untrained; leave out --num-classes, or {ADVICE}."
        )
    if config.hf_hub_id:
        _check_reachable(name, config.hf_hub_id, "model.safetensors", "pytorch_model.bin")


def _check_reachable(name: str, repository: str, *files: str) -> None:
    """Spare the user half a minute of retries where there is no network at all."""
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    if reason := hub_is_out_of_reach():
        raise UserError(f"cannot download '{name}': {reason}; {ADVICE}.")


def _unknown(name: str) -> str:
    close = get_close_matches(name, timm.list_models(pretrained=False), n=3, cutoff=0.6)
    hint = (
        f"did you mean {' or '.join(repr(match) for match in close)}?"
        if close
        else ("timm.list_models('*vit*') lists vision transformers.")
    )
    return f"unknown timm model '{short(name)}'; {hint}"


def _kept_arguments(model: nn.Module) -> dict[str, Argument]:
    """What timm keeps of a call of create_model (since 1.0.31), as far as it is plain data."""
    kept = getattr(model, "_model_args", {})
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in kept.items()}
    allowed = _constructor_parameters(type(model))
    return {key: v for key, v in lists.items() if key in allowed and is_argument(v)}


def _differences(model: nn.Module, plain: nn.Module) -> dict[str, Argument]:
    """Arguments that a model shows by its attributes where it differs from its plain build."""
    found: dict[str, Argument] = {}
    sizes = [getattr(getattr(m, "patch_embed", None), "img_size", None) for m in (model, plain)]
    if sizes[0] is not None and sizes[0] != sizes[1]:
        found["img_size"] = list(sizes[0])
    for key in ("global_pool", "in_chans"):
        value = getattr(model, key, None)
        if is_argument(value) and value is not None and value != getattr(plain, key, value):
            found[key] = value
    return found


def _constructor_parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The arguments of the constructors of a class and its bases, by name."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is nn.Module:
            break
        found = {**inspect.signature(base).parameters, **found}
    return {k: p for k, p in found.items() if k not in ("args", "kwargs", "device", "dtype")}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (
        f"{type(error).__name__}: {short(lines[0]).rstrip('.')}" if lines else type(error).__name__
    )


libraries.register("timm")(TimmModels())
