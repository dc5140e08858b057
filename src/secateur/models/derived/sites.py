"""Hook points of a branch, where its quantities pass by; see `secateur.models.hook_points`.

Legend: B batch, N tokens, H heads.
"""

from dataclasses import replace

from torch import Tensor, nn

from secateur.models.derived.blocks import PartialBlock
from secateur.models.derived.layout import attention_shape, held_in
from secateur.models.derived.names import optional
from secateur.models.derived.steps import Step
from secateur.models.hook_points import HookPoint, View
from secateur.models.statement import AttentionLayer, MlpLayer


def sites_of(step: Step) -> dict[str, HookPoint]:
    """Hook points of a branch; queries and keys are seen after QK-norm where there is one."""
    residual, block, view = step.residual, step.block, step.view
    before = residual.norm is not None and not residual.norm_behind and step.norm is not None
    norm, named = f"{block}.{residual.norm}", before and residual.layers[0].call.by_name
    sites = {
        "stream": HookPoint(norm if before else step.path, "input", view),
        "input": HookPoint(*((norm, "output") if named else (step.path, "input")), view),
        "update": HookPoint(_update(step), "output", view),
    }
    if isinstance(step.layer, MlpLayer):
        return sites | {"hidden": HookPoint(f"{step.path}.{step.layer.writer}", "input", view)}
    assert isinstance(step.layer, AttentionLayer)
    if step.windows is not None:
        sites["input"] = HookPoint(sites["stream"].module, "output" if before else "input", view)
        if residual.inside and not isinstance(step.owner, PartialBlock):
            sites["update"] = replace(sites["update"], windows=step.windows)
    if step.unseen:
        return sites
    return sites | _attention_sites(step.path, step.module, step.layer)


def _update(step: Step) -> str:
    """The last module that an update passes."""
    residual = step.residual
    if isinstance(step.owner, PartialBlock):
        return f"{step.block}.{step.owner.passed(residual)}"
    if residual.drop is not None and not residual.drop_shared:
        return f"{step.block}.{residual.drop}"
    if residual.norm_behind and step.norm is not None:
        return f"{step.block}.{residual.norm}"
    if step.scale is not None and residual.scale is not None and step.scale_module is not None:
        return f"{step.block}.{residual.scale.rpartition('.')[0]}"
    if isinstance(step.layer, AttentionLayer) and residual.layers[0].call.pair:
        return f"{step.path}.{step.layer.out}"
    return step.path


def _attention_sites(path: str, attn: nn.Module, layer: AttentionLayer) -> dict[str, HookPoint]:
    shape = attention_shape(attn, layer)
    names, sizes = ("query", "key", "value"), (shape.qk, shape.qk, shape.vo)
    out = HookPoint(f"{path}.{layer.out}", "input", _by_head(shape.heads, 0, shape.vo))
    sites = {"context": out}
    for weight, held in held_in(layer.qkv, "weight").items():
        first, each = 0, sum(sizes[part] for part in held) if layer.qkv.by_head else 0
        for part in held:
            view = _by_head(shape.heads, first, sizes[part], each)
            sites[names[part]] = HookPoint(f"{path}.{weight.rpartition('.')[0]}", "output", view)
            first += sizes[part]
    for name, norm in zip(names, layer.qk_norm or (), strict=False):
        if optional(attn, norm) is not None:
            sites[name] = HookPoint(f"{path}.{norm}", "output", _by_token)
    return sites


def _by_head(heads: int, first: int, dims: int, each: int = 0) -> View:
    """The view (..., heads, dims) of each head's dims from `first` on.

    Features are packed head by head with `each` in a head, or (0) all heads of each kind together.
    """

    def view(t: Tensor) -> Tensor:
        if each:
            by_head: Tensor = t.unflatten(-1, (heads, each))
            return by_head[..., first : first + dims]
        features = t[..., heads * first : heads * (first + dims)]
        return features.view(*features.shape[:-1], heads, dims)

    return view


def _by_token(t: Tensor) -> Tensor:
    return t.transpose(1, 2)
