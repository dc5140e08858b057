"""timm VisionTransformers made by their constructors, whose arguments are read off the module."""

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from timm.layers import (
    GELUTanh,
    GluMlp,
    LayerNorm,
    LayerScale,
    Mlp,
    PatchEmbed,
    QuickGELU,
    RmsNorm,
    SwiGLU,
    SwiGLUPacked,
)
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import nn

from secateur.errors import UserError, short
from secateur.registry import unknown
from secateur.storage.library import Argument, Arguments, libraries, tuples
from secateur.storage.untrusted.bounds import UNBUILDABLE, check_types

CLASSES = {
    "VisionTransformer": VisionTransformer,
    "VisionTransformerDistilled": VisionTransformerDistilled,
}
LAYERS: dict[str, dict[str, Any]] = {
    "block_fn": {"Block": Block, "ResPostBlock": ResPostBlock},
    "mlp_layer": {"Mlp": Mlp, "GluMlp": GluMlp, "SwiGLUPacked": SwiGLUPacked, "SwiGLU": SwiGLU},
    "norm_layer": {"LayerNorm": LayerNorm, "RmsNorm": RmsNorm, "torch.LayerNorm": nn.LayerNorm},
    "act_layer": {
        "GELU": nn.GELU,
        "GELUTanh": GELUTanh,
        "QuickGELU": QuickGELU,
        "ReLU": nn.ReLU,
        "SiLU": nn.SiLU,
    },
}
"""Arguments that are classes, and the only classes a file may name."""

PLAIN = set(inspect.signature(VisionTransformer.__init__).parameters) - {
    "self", "embed_layer", "embed_norm_layer", "attn_layer", "device", "dtype", *LAYERS,
}  # fmt: skip


class TimmClasses:
    """The two timm classes of plain vision transformers, whatever their sizes."""

    title = "timm.models.vision_transformer.VisionTransformer"
    by_name = False

    def open(
        self, name: str, *, pretrained: bool, num_classes: int | None, img_size: int | None
    ) -> nn.Module:
        """Not by name: such a model is passed as a module."""
        raise UserError(f"'{name}' is a class, not a model; pass a module of it instead.")

    def recognise(self, model: nn.Module) -> Iterator[tuple[str, Arguments]]:
        """Constructor arguments as the module shows them."""
        for name, cls in CLASSES.items():
            if type(model) is cls and _uniform(model):
                try:
                    found = _arguments(model)
                except AttributeError:  # layers that the class does not make by itself
                    return
                yield name, found

    def skeleton(self, name: str, arguments: Arguments) -> nn.Module:
        """Call the constructor of a known class with known layers."""
        if name not in CLASSES:
            raise UserError(unknown("class", name, sorted(CLASSES)))
        values: dict[str, Any] = {}
        for key, value in arguments.items():
            if key in LAYERS:
                if not isinstance(value, str) or value not in LAYERS[key]:
                    raise UserError(unknown(key, str(value), sorted(LAYERS[key])))
                values[key] = LAYERS[key][value]
            elif key in PLAIN:
                values[key] = tuples(value)
            elif key != "norm_eps":
                raise UserError(f"'{key}' is no argument of {name} that a file may set.")
        check_types(arguments, inspect.signature(VisionTransformer.__init__).parameters)
        epsilon = arguments.get("norm_eps")
        if isinstance(epsilon, float):
            norm_layer = values.get("norm_layer", LayerNorm)
            values["norm_layer"] = partial(norm_layer, eps=epsilon)
        try:
            return CLASSES[name](**values)
        except UNBUILDABLE as error:
            raise UserError(
                f"{name} cannot be built with {short(dict(arguments))}: {short(error)}."
            ) from error


Host = Any
"""A timm module, whose parts are read by attribute."""


def _uniform(model: Host) -> bool:
    """Whether the embedding is the usual one and the first block can stand for all blocks."""
    kinds = {type(block) for block in model.blocks}
    usual = type(model.patch_embed) is PatchEmbed
    return usual and len(kinds) == 1 and kinds <= set(LAYERS["block_fn"].values())


def _arguments(model: Host) -> dict[str, Argument]:
    block = model.blocks[0]
    attn, embed = block.attn, model.patch_embed
    has_norm = [not isinstance(norm, nn.Identity) for norm in (model.norm, model.fc_norm)]
    scaled = isinstance(getattr(block, "ls1", None), LayerScale)
    scaled = scaled or getattr(block, "init_values", None) is not None
    found: dict[str, Argument] = {
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "num_classes": getattr(model.head, "out_features", 0),
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": attn.num_heads,
        "qkv_bias": attn.qkv.bias is not None,
        "qk_norm": not isinstance(attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(getattr(attn, "norm", nn.Identity()), nn.Identity),
        "scale_mlp_norm": not isinstance(block.mlp.norm, nn.Identity),
        "proj_bias": attn.proj.bias is not None,
        "init_values": 1e-5 if scaled else None,
        "class_token": model.cls_token is not None,
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "no_embed_class": model.no_embed_class,
        "reg_tokens": 0 if model.reg_token is None else model.reg_token.shape[1],
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": any(has_norm),
        "fc_norm": has_norm[1],
        "pool_include_prefix": model.pool_include_prefix,
        "dynamic_img_size": model.dynamic_img_size,
        "dynamic_img_pad": embed.dynamic_img_pad,
        "block_fn": type(block).__name__,
    }
    return (
        found | _mlp_arguments(block.mlp, model.embed_dim) | _norm_arguments(block) | _drops(model)
    )


def _mlp_arguments(mlp: Host, width: int) -> dict[str, Argument]:
    layer = type(mlp).__name__
    if isinstance(mlp, GluMlp) and not mlp.gate_last:
        layer = "SwiGLUPacked"
    hidden = (mlp.fc1_g if isinstance(mlp, SwiGLU) else mlp.fc1).out_features
    ratio = hidden / width
    if int(ratio * width) != hidden:
        # WHY: the constructor truncates ratio * width, and the quotient may round down.
        ratio = (hidden + 0.5) / width
    return {"mlp_layer": layer, "mlp_ratio": ratio, "act_layer": type(mlp.act).__name__}


def _norm_arguments(block: Host) -> dict[str, Argument]:
    names = {cls: name for name, cls in LAYERS["norm_layer"].items()}
    name = names.get(type(block.norm1), type(block.norm1).__name__)
    return {"norm_layer": name, "norm_eps": block.norm1.eps}


def _drops(model: Host) -> dict[str, Argument]:
    """Rates of dropout and stochastic depth, which matter when the model is trained again."""
    last = model.blocks[-1]
    rates = {
        "drop_rate": model.head_drop.p,
        "pos_drop_rate": model.pos_drop.p,
        "patch_drop_rate": getattr(model.patch_drop, "prob", 0.0),
        "attn_drop_rate": last.attn.attn_drop.p,
        "proj_drop_rate": last.attn.proj_drop.p,
        "drop_path_rate": getattr(last.drop_path1, "drop_prob", 0.0),
    }
    return {key: rate for key, rate in rates.items() if rate}


libraries.register("timm-class")(TimmClasses())
