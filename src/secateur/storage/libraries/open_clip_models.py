"""Image towers of open_clip: `open_clip:NAME` or `open_clip:NAME@TAG`. Needs `open_clip_torch`."""

import warnings
from collections.abc import Iterator
from dataclasses import asdict
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn

from secateur.errors import Advice, UserError, short
from secateur.registry import unknown
from secateur.storage.library import Argument, Arguments, libraries, tuples
from secateur.storage.network import hub_is_out_of_reach
from secateur.storage.untrusted.bounds import UNBUILDABLE

CLASS = "VisionTransformer"
SIZES = ("image_size", "patch_size", "width", "layers", "heads", "mlp_ratio", "output_dim")
CHOICES = ("ls_init_value", "no_ln_pre", "pool_type", "final_ln_after_pool", "output_tokens")
ACTIVATIONS = ("GELU", "QuickGELU")


class OpenClipModels:
    """Plain vision transformers of open_clip, without their text towers."""

    title = "open_clip:NAME"
    by_name = True

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """The image tower of a model, with the weights of a tag where one is named.

        UserError without a tag for weights, and for towers of other kinds.
        """
        library = _open_clip()
        model, _, tag = name.partition("@")
        config = library.get_model_config(model)
        if config is None:
            close = get_close_matches(model, library.list_models(), n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else "open_clip.list_models()."
            raise UserError(f"unknown open_clip model '{short(model)}'; {hint}")
        if num_classes is not None:
            raise UserError("an image tower gives features: leave out --num-classes.")
        if img_size is not None:
            config["vision_cfg"]["image_size"] = img_size
        if "timm_model_name" in config["vision_cfg"]:
            timm_name = config["vision_cfg"]["timm_model_name"]
            raise UserError(
                f"the image tower of '{model}' is a model of timm: take timm:{timm_name}, or pass "
                "the tower's `trunk`."
            )
        arguments = _arguments_of(model, config)
        if not pretrained:
            return self.skeleton(CLASS, arguments)
        return _pretrained(library, model, tag, img_size)

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """The sizes that a tower shows."""
        known = (type(model).__module__, type(model).__name__) == ("open_clip.transformer", CLASS)
        if known and (arguments := _shown(model)):
            yield CLASS, arguments

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """A tower by its sizes, and by nothing else that a file could name."""
        if name != CLASS:
            raise UserError(unknown("class", name, [CLASS]))
        transformer = import_module(f"{_open_clip().__name__}.transformer")
        values: dict[str, Any] = {key: tuples(value) for key, value in arguments.items()}
        activation = str(values.pop("act_layer", ACTIVATIONS[0]))
        if odd := sorted(set(values) - {*SIZES, *CHOICES}):
            raise UserError(f"'{short(odd[0])}' is no argument of a tower that a file may set.")
        if activation not in ACTIVATIONS:
            raise UserError(unknown("activation", activation, list(ACTIVATIONS)))
        values["act_layer"] = transformer.QuickGELU if activation == "QuickGELU" else nn.GELU
        try:
            tower: nn.Module = transformer.VisionTransformer(**values)
        except UNBUILDABLE as error:
            raise UserError(
                f"open_clip cannot build a tower with {short(dict(arguments))}: {short(error)}."
            ) from error
        tower.__dict__.setdefault("image_mean", _open_clip().OPENAI_DATASET_MEAN)
        tower.__dict__.setdefault("image_std", _open_clip().OPENAI_DATASET_STD)
        return tower


def _open_clip() -> ModuleType:
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise UserError(
            "models called open_clip:NAME need open_clip: pip install secateur[open_clip]."
        ) from error


def _arguments_of(name: str, config: Any) -> dict[str, Argument]:
    """The arguments of the tower in a model's configuration."""
    vision = import_module("open_clip.model").CLIPVisionCfg
    try:
        known = asdict(vision(**config["vision_cfg"]))
    except TypeError as error:
        raise UserError(f"the image tower of '{name}' is none that secateur can read.") from error
    others = ("attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads",
              "scale_attn_inner", "scale_attn", "scale_fc")  # fmt: skip
    if not isinstance(known["layers"], int) or any(known[key] for key in others):
        raise UserError(f"the image tower of '{name}' is no plain vision transformer.")
    known |= {"heads": known["width"] // known["head_width"], "output_dim": config["embed_dim"]}
    found: dict[str, Argument] = {key: known[key] for key in (*SIZES, *CHOICES)}
    return found | {"act_layer": "QuickGELU" if config.get("quick_gelu") else "GELU"}


def _shown(tower: Any) -> dict[str, Argument]:
    """The arguments from which a tower was built; empty where its layers do not show them."""
    blocks = [block for block in tower.transformer.resblocks if hasattr(block, "ls_1")]
    whole = [block for block in blocks if hasattr(block, "mlp") and hasattr(block, "attn")]
    if not whole:
        return {}
    width, block = tower.conv1.out_channels, whole[0]
    return {
        "image_size": list(tower.image_size),
        "patch_size": list(tower.patch_size),
        "width": width,
        "layers": len(tower.transformer.resblocks),
        "heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.c_fc.out_features / width,
        "output_dim": tower.output_dim,
        "ls_init_value": None if isinstance(block.ls_1, nn.Identity) else 1e-5,
        "no_ln_pre": isinstance(tower.ln_pre, nn.Identity),
        "pool_type": tower.pool_type,
        "final_ln_after_pool": tower.final_ln_after_pool,
        "output_tokens": tower.output_tokens,
        "act_layer": type(block.mlp.gelu).__name__,
    }


def _pretrained(library: ModuleType, model: str, tag: str, img_size: int | None) -> nn.Module:
    tags = library.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise UserError(
            f"name the weights of '{model}', as in open_clip:{model}@{tags[0] if tags else 'TAG'} "
            f"(open_clip knows {len(tags)} for it), or pass --checkpoint FILE."
        )
    if reason := hub_is_out_of_reach():
        raise UserError(f"cannot download '{model}@{tag}': {reason}; pass --checkpoint FILE.")
    try:
        whole = library.create_model(model, pretrained=tag, force_image_size=img_size)
    except Exception as error:
        # WHY: the download can fail in the ways of several network libraries.
        raise UserError(f"open_clip could not load '{model}@{tag}': {short(error)}.") from error
    tower: nn.Module = whole.visual
    if not hasattr(tower, "image_mean"):
        warnings.warn("open_clip's own mean and deviation of images are assumed", Advice, 4)
    return tower


libraries.register("open_clip")(OpenClipModels())
