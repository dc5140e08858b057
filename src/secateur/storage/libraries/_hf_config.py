"""Configurations of transformers as plain arguments, and with the sizes of a smaller model."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from secateur.errors import UserError
from secateur.storage.base import Base
from secateur.storage.directories.plain import Uniform
from secateur.storage.library import Argument, is_argument

NOT_ARGUMENTS = {
    "transformers_version", "architectures", "model_type", "label2id", "dtype", "text_config",
}  # fmt: skip
OF_DEPTH = ("stage_names", "out_features", "out_indices", "input_size")
"""Settings that follow from others, or are ours."""


def plain_arguments(model: nn.Module, base: Base, shape: Uniform) -> dict[str, Argument]:
    """Those of the base with other sizes; UserError for hidden neurons that no ratio gives."""
    config: Any = getattr(model, "config", None)
    part = "vision_config." if hasattr(config, "vision_config") else ""
    settings: dict[str, Argument] = {
        "hidden_size": shape.width,
        "num_hidden_layers": len(shape.blocks),
        "num_attention_heads": shape.heads,
    }
    if shape.heads * shape.dims != shape.width:
        settings["head_dim"] = shape.dims
    if f"{part}mlp_ratio" in base.arguments:
        gated = bool(base.arguments.get(f"{part}use_swiglu_ffn"))
        settings["mlp_ratio"] = _ratio(shape.hidden, shape.width, gated=gated)
    else:
        settings["intermediate_size"] = shape.hidden
    kept = {k: v for k, v in base.arguments.items() if k.rpartition(".")[2] not in OF_DEPTH}
    return kept | {f"{part}{key}": value for key, value in settings.items()}


def _ratio(hidden: int, width: int, *, gated: bool) -> int:
    """The whole number by which DINOv2 derives its hidden neurons from its width."""
    for ratio in range(1, 17):
        inner = width * ratio
        if hidden == ((int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner):
            return ratio
    raise UserError(
        f"{hidden} hidden neurons are no whole multiple of its width {width}, as its library "
        "derives them; save it without plain."
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Argument]]:
    """Settings that are plain data, those of parts of a configuration under dotted names."""
    for key, value in values.items():
        if key in NOT_ARGUMENTS or key == "id2label":
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        plain = list(value) if isinstance(value, tuple) else value
        if is_argument(plain):
            yield f"{prefix}{key}", plain


def nested(values: Mapping[str, Argument]) -> dict[str, Any]:
    """The reverse: parts of a configuration under their names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *parts, last = key.split(".")
        place = found
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return found
