"""Make the residual stream of a timm VisionTransformer narrower: the same channels everywhere.

Members are the patch embedding, prefix tokens, positions, all norms and LayerScales, the readers
and writers of every branch, and the heads. Legend: D residual width.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.norms import can_hold, held_norm
from secateur.models.places import PARTS, AnyAttention, AnyMlp, Place, linear, place, readers
from secateur.models.stream import END, Held, StreamWeights

TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")
HEADS = ("head", "head_dist")
NORMS = ("norm_pre", "norm", "fc_norm")
WIDTHS = ("embed_dim", "num_features", "head_hidden_size")
KNOWN = {"patch_embed", "pos_drop", "patch_drop", "blocks", "head_drop", *NORMS, *HEADS}


def why_not(vit: VisionTransformer) -> str | None:
    """Why the stream of this model cannot be made narrower; None if it can."""
    if vit.attn_pool is not None:
        return (
            f"its pooling head ({type(vit.attn_pool).__name__}) splits the channels of the stream "
            "into heads of fixed size"
        )
    strange = {
        name for name, child in vit.named_children() if any(True for _ in child.parameters())
    }
    strange |= {name for name, _ in vit.named_parameters(recurse=False)}
    if strange := strange - KNOWN - set(TOKENS):
        return f"how its '{min(strange)}' uses the stream is not known"
    for name in HEADS:
        head = getattr(vit, name, None)
        if not isinstance(head, nn.Linear | nn.Identity | None):
            return f"its {name} is a {type(head).__name__}, not a Linear"
    return None


@torch.no_grad()
def narrow_vit_(vit: VisionTransformer, kept_D: Tensor, held: Mapping[str, Held]) -> None:
    """Keep the channels `kept_D` in every member.

    Norms go over what is left; where `held` says what stood in the removed channels, by branch
    and `END`, they count these as constants. Norms behind a branch or before the first one do
    not.
    """
    if END in held:
        _hold_end_(vit, kept_D, held[END])
    keep_rows_(vit.patch_embed.proj, kept_D)
    keep_vector_(vit.patch_embed.norm, kept_D)
    for name in TOKENS:
        if (table := getattr(vit, name, None)) is not None:
            setattr(vit, name, _kept(table, kept_D, -1))
    for name in NORMS:
        keep_vector_(getattr(vit, name), kept_D)
    for index, block in enumerate(vit.blocks):
        for part in PARTS:
            if found := place(block, part):
                path = f"blocks.{index}.{part}"
                if path in held and not found.post_norm and can_hold(found.norm):
                    norm = held_norm(found.norm, branch_readers(found), kept_D, held[path])
                    setattr(block, f"norm{PARTS.index(part) + 1}", norm)
                    found = replace(found, norm=norm)
                _narrow_branch_(found, kept_D, path)
    for name in HEADS:
        if isinstance(head := getattr(vit, name, None), nn.Linear):
            keep_columns_(head, kept_D)
    for name in WIDTHS:
        setattr(vit, name, kept_D.numel())
    for info in vit.feature_info:
        info["num_chs"] = kept_D.numel()


def vit_ends_weights(vit: VisionTransformer) -> StreamWeights:
    """Patch embedding and prefix tokens as writers, the classifiers as readers."""
    heads = {name: getattr(vit, name, None) for name in HEADS}
    return StreamWeights(
        writers={"patch_embed": vit.patch_embed.proj.weight.detach().flatten(1)},
        readers={
            name: head.weight.detach().T
            for name, head in heads.items()
            if isinstance(head, nn.Linear)
        },
    )


def _hold_end_(vit: VisionTransformer, kept_D: Tensor, held: Held) -> None:
    name = next((name for name in ("norm", "fc_norm") if can_hold(getattr(vit, name))), None)
    readers = [head for head in (getattr(vit, name, None) for name in HEADS) if head is not None]
    linears = [head for head in readers if isinstance(head, nn.Linear)]
    if name is not None and linears:
        setattr(vit, name, held_norm(getattr(vit, name), linears, kept_D, held))


def branch_readers(found: Place) -> list[nn.Linear]:
    """The linear layers that read what a branch's norm gives."""
    if found.is_stand_in:
        return [found.writer]
    module: AnyAttention | AnyMlp = found.module  # type: ignore[assignment]
    if hasattr(module, "qkv"):
        gate = getattr(module, "gate", None)
        return [linear(module, "qkv"), *([gate] if isinstance(gate, nn.Linear) else [])]
    return readers(module)  # type: ignore[arg-type]


def _narrow_branch_(found: Place, kept_D: Tensor, path: str) -> None:
    for reader in branch_readers(found):
        keep_columns_(reader, kept_D)
    keep_rows_(found.writer, kept_D)
    for vector in found.vectors:
        keep_vector_(vector, kept_D, path)


def keep_rows_(module: nn.Module, kept_D: Tensor) -> None:
    """Keep these outputs of a linear layer or convolution."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise UserError(f"a {type(module).__name__} cannot be made narrower.")
    module.weight = _kept(module.weight, kept_D, 0)
    if module.bias is not None:
        module.bias = _kept(module.bias, kept_D, 0)
    if isinstance(module, nn.Linear):
        module.out_features = kept_D.numel()
    else:
        module.out_channels = kept_D.numel()


def keep_columns_(module: nn.Linear, kept_D: Tensor) -> None:
    """Keep these inputs of a linear layer."""
    module.weight = _kept(module.weight, kept_D, 1)
    module.in_features = kept_D.numel()


def keep_vector_(module: nn.Module, kept_D: Tensor, path: str = "") -> None:
    """Keep these entries of a norm or LayerScale."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.shape == (kept_D.numel(),):
            continue
        if parameter.ndim != 1:
            raise UserError(f"{path}.{name} of a {type(module).__name__} is no vector of channels.")
        setattr(module, name, _kept(parameter, kept_D, 0))
    if hasattr(module, "normalized_shape"):
        # WHY: timm's RMS norm is no subclass of torch's norms, but names its shape as they do.
        module.__dict__["normalized_shape"] = (kept_D.numel(),)


def _kept(parameter: Tensor, kept_D: Tensor, axis: int) -> nn.Parameter:
    chosen: Callable[..., Tensor] = parameter.detach().index_select
    return nn.Parameter(chosen(axis, kept_D.to(parameter.device)), parameter.requires_grad)
