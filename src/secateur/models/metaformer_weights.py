"""Translation between EfficientFormer's attention and convolutional MLPs and canonical weights.

Legend: D residual width, N tokens, H heads, K query/key dims per head, V value dims per head,
F hidden neurons, T entries of a table of position biases.
"""

import torch
from timm.models.efficientformer import Attention, ConvMlpWithNorm
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.counting import Prices, parameters
from secateur.models.types import AttentionShape, Cost, MlpShape, Rate
from secateur.models.weights import AttentionWeights, MlpWeights


def attention_shape(attn: Attention) -> AttentionShape:
    """Sizes of the layer."""
    return AttentionShape(heads=attn.num_heads, qk=attn.key_dim, vo=attn.val_dim)


def attention_weights(attn: Attention) -> AttentionWeights:
    """Split the fused qkv, whose rows are [q|k|v] head by head; the bias table is per head."""
    qkv, proj, heads = attn.qkv, attn.proj, attn.num_heads
    sizes = [attn.key_dim, attn.key_dim, attn.val_dim]
    q_HKD, k_HKD, v_HVD = qkv.weight.detach().unflatten(0, (heads, sum(sizes))).split(sizes, 1)
    biases: list[Tensor | None] = [None, None, None]
    if qkv.bias is not None:
        biases = list(qkv.bias.detach().unflatten(0, (heads, sum(sizes))).split(sizes, 1))
    return AttentionWeights(
        q_HKD=q_HKD,
        k_HKD=k_HKD,
        v_HVD=v_HVD,
        o_DHV=proj.weight.detach().unflatten(1, (heads, attn.val_dim)),
        qb_HK=biases[0],
        kb_HK=biases[1],
        vb_HV=biases[2],
        ob_D=None if proj.bias is None else proj.bias.detach(),
        scale=float(attn.scale),
        table_HT=attn.attention_biases.detach(),
        places_NN=attn.get_buffer("attention_bias_idxs"),
    )


def assign_attention_(attn: Attention, weights: AttentionWeights) -> None:
    """Give the layer these weights; its class and its softmax scale stay."""
    assert weights.table_HT is not None
    shape = weights.shape
    rows = torch.cat([weights.q_HKD, weights.k_HKD, weights.v_HVD], 1)
    parts = (weights.qb_HK, weights.kb_HK, weights.vb_HV)
    present = [part for part in parts if part is not None]
    assign_layer_(
        attn.qkv, rows.flatten(0, 1), torch.cat(present, 1).flatten() if present else None
    )
    assign_layer_(attn.proj, weights.o_DHV.flatten(1), weights.ob_D)
    attn.attention_biases = _parameter(weights.table_HT, attn.attention_biases)
    # WHY: in evaluation mode timm keeps the gathered table until the mode is set again.
    attn.attention_bias_cache = {}
    attn.num_heads, attn.key_dim, attn.val_dim = shape.heads, shape.qk, shape.vo
    attn.key_attn_dim, attn.val_attn_dim = shape.heads * shape.qk, shape.heads * shape.vo


def conv_mlp_weights(mlp: ConvMlpWithNorm) -> MlpWeights:
    """fc1 and fc2 as matrices; the batch norm between is one row of `unit_FT` per neuron."""
    norm = mlp.norm1
    unit_FT = None
    if isinstance(norm, nn.BatchNorm2d):
        columns = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        unit_FT = torch.stack([column.detach() for column in columns if column is not None], 1)
    return MlpWeights(
        readers_FD=(mlp.fc1.weight.detach().flatten(1),),
        reader_biases_F=(None if mlp.fc1.bias is None else mlp.fc1.bias.detach(),),
        w2_DF=mlp.fc2.weight.detach().flatten(1),
        b2_D=None if mlp.fc2.bias is None else mlp.fc2.bias.detach(),
        unit_FT=unit_FT,
    )


def assign_conv_mlp_(mlp: ConvMlpWithNorm, weights: MlpWeights) -> None:
    """Give the MLP these weights in place."""
    assign_layer_(mlp.fc1, weights.readers_FD[0], weights.reader_biases_F[0])
    assign_layer_(mlp.fc2, weights.w2_DF, weights.b2_D)
    norm = mlp.norm1
    if isinstance(norm, nn.BatchNorm2d) and weights.unit_FT is not None:
        scale_F, shift_F, mean_F, var_F = weights.unit_FT.unbind(1)
        norm.num_features = weights.shape.hidden
        norm.weight, norm.bias = _parameter(scale_F, norm.weight), _parameter(shift_F, norm.bias)
        norm.running_mean, norm.running_var = (
            _copied(mean_F, norm.weight),
            _copied(var_F, norm.weight),
        )


def assign_layer_(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give a Linear or 1x1 convolution copies of a matrix and a bias, in its own type."""
    rows, columns = weight.shape
    old = layer.get_parameter("weight")
    if isinstance(layer, nn.Conv2d):
        weight = weight[:, :, None, None]
        layer.in_channels, layer.out_channels = columns, rows
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = columns, rows
    layer.register_parameter("weight", _parameter(weight, old))
    layer.register_parameter("bias", None if bias is None else _parameter(bias, old))


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(_copied(value, like), like.requires_grad)


def _copied(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().to(like.dtype, copy=True).contiguous()


def check_conv_mlp(path: str, mlp: ConvMlpWithNorm) -> None:
    """UserError for layers and norms that cannot be made smaller."""
    for name, kinds in (
        ("fc1", (nn.Conv2d,)),
        ("fc2", (nn.Conv2d,)),
        ("norm1", (nn.BatchNorm2d, nn.Identity)),
        ("norm2", (nn.BatchNorm2d, nn.Identity)),
    ):
        found = mlp.get_submodule(name)
        if not isinstance(found, kinds) or not getattr(found, "track_running_stats", True):
            raise UserError(
                f"{path}.{name} is a {type(found).__name__}; of EfficientFormer's convolutional "
                "MLPs only those with batch norm that keeps running statistics, or with none, can "
                "be read."
            )


def attention_rates(attn: Attention, vectors: list[nn.Module], tokens: int) -> Prices:
    """The `Branch` prices of an attention layer with its norm and LayerScale."""
    n, width = tokens, attn.proj.out_features
    bias_in, bias_out = int(attn.qkv.bias is not None), int(attn.proj.bias is not None)
    per_width = sum(parameters(module) for module in vectors) // width + bias_out
    return {
        "fixed": Rate(per_width=Cost(params=per_width)),
        "per_head": Rate(base=Cost(params=attn.attention_biases.shape[1])),
        "per_qk": Rate(
            base=Cost(params=2 * bias_in, macs=n * n), per_width=Cost(params=2, macs=2 * n)
        ),
        "per_vo": Rate(base=Cost(params=bias_in, macs=n * n), per_width=Cost(params=2, macs=2 * n)),
    }


def conv_mlp_rates(mlp: ConvMlpWithNorm, scale: nn.Module, tokens: int) -> Prices:
    """The `Branch` prices of a convolutional MLP with both norms and LayerScale."""
    width, hidden = mlp.fc2.out_channels, mlp.fc2.in_channels
    bias_in, bias_out = int(mlp.fc1.bias is not None), int(mlp.fc2.bias is not None)
    per_width = (parameters(scale) + parameters(mlp.norm2)) // width + bias_out
    per_unit = parameters(mlp.norm1) // hidden + bias_in
    return {
        "fixed": Rate(per_width=Cost(params=per_width)),
        "per_hidden": Rate(base=Cost(params=per_unit), per_width=Cost(params=2, macs=2 * tokens)),
    }


def mlp_shape(mlp: nn.Module) -> MlpShape:
    """Hidden neurons of a linear or convolutional MLP."""
    return MlpShape(hidden=mlp.get_parameter("fc2.weight").shape[1])
