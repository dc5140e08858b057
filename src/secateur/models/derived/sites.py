"""Hook points of a branch, where its quantities pass by; see `secateur.models.hook points`.

Legend: B batch, N tokens, H heads.
"""

from torch import Tensor, nn

from secateur.models.derived.layout import attention_shape, out_of
from secateur.models.derived.names import optional
from secateur.models.derived.steps import Step
from secateur.models.hook_points import HookPoint, View, whole
from secateur.models.modules import SlimAttention, as_tokens
from secateur.models.statement import AttentionLayer, MlpLayer, Packed, Separate


def sites_of(step: Step) -> dict[str, HookPoint]:
    """Hook points of a branch; queries and keys are seen after QK-norm where there is one."""
    residual, block, view = step.residual, step.block, whole if step.grid is None else as_tokens
    before = residual.norm is not None and not residual.norm_behind and step.norm is not None
    sites = {
        "stream": HookPoint(f"{block}.{residual.norm}" if before else step.path, "input", view),
        "input": HookPoint(step.path, "input", view),
        "update": HookPoint(_update(step), "output", view),
    }
    if isinstance(step.layer, MlpLayer):
        return sites | {"hidden": HookPoint(f"{step.path}.{step.layer.writer}", "input", view)}
    assert isinstance(step.layer, AttentionLayer)
    return sites | _attention_sites(step.path, step.module, step.layer)


def _update(step: Step) -> str:
    """The last module that an update passes."""
    residual = step.residual
    if residual.drop is not None:
        return f"{step.block}.{residual.drop}"
    if residual.norm_behind and step.norm is not None:
        return f"{step.block}.{residual.norm}"
    if step.scale is not None and residual.scale is not None and "." in residual.scale:
        return f"{step.block}.{residual.scale.rpartition('.')[0]}"
    if isinstance(step.layer, AttentionLayer) and residual.layers[0].call.pair:
        return f"{step.path}.{out_of(step.module, step.layer)}"
    return step.path


def _attention_sites(path: str, attn: nn.Module, layer: AttentionLayer) -> dict[str, HookPoint]:
    shape, own = attention_shape(attn, layer), isinstance(attn, SlimAttention)
    heads, qk, vo = shape.heads, shape.qk, shape.vo
    qkv = Packed() if own else layer.qkv
    names = ("query", "key", "value")
    if isinstance(qkv, Separate):
        paths = (qkv.q, qkv.k, qkv.v)
        views = [_by_head(0, heads, dims) for dims in (qk, qk, vo)]
    else:
        paths = (qkv.weight.rpartition(".")[0],) * 3
        if qkv.by_head:
            views = [
                _in_head(i * qk, heads, 2 * qk + vo, dims) for i, dims in enumerate((qk, qk, vo))
            ]
        else:
            views = [_by_head(i * heads * qk, heads, dims) for i, dims in enumerate((qk, qk, vo))]
    sites = {
        name: HookPoint(f"{path}.{at}", "output", view)
        for name, at, view in zip(names, paths, views, strict=True)
    }
    norms = ("q_norm", "k_norm") if own else layer.qk_norm or ()
    for name, norm in zip(("query", "key"), norms, strict=False):
        if optional(attn, norm) is not None:
            sites[name] = HookPoint(f"{path}.{norm}", "output", _by_token)
    return sites | {
        "context": HookPoint(f"{path}.{out_of(attn, layer)}", "input", _by_head(0, heads, vo))
    }


def _by_head(first: int, heads: int, dims: int) -> View:
    """The view (..., heads, dims) of that many features, from number `first` on."""

    def view(t: Tensor) -> Tensor:
        features = t[..., first : first + heads * dims]
        return features.view(*features.shape[:-1], heads, dims)

    return view


def _in_head(first: int, heads: int, each: int, dims: int) -> View:
    """The view (..., heads, dims) of features packed head by head, `each` in a head."""

    def view(t: Tensor) -> Tensor:
        by_head: Tensor = t.unflatten(-1, (heads, each))
        return by_head[..., first : first + dims]

    return view


def _by_token(t: Tensor) -> Tensor:
    return t.transpose(1, 2)
