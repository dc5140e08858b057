"""Torch-Pruning's Taylor importance on the same model, images and MACs, as its example has it.

After examples/transformers/prune_timm_vit.py of that project: every head loses the same dims of
queries, keys and values together; with `embed` the residual width is pruned too, without it
(the example's --bottleneck) only the insides of attention and MLP. Two things favour the peer:
its ratio is bisected to land right under the MACs, and its softmax keeps the dense temperature.
"""

import copy

import torch
import torch.nn.functional as F
import torch_pruning as tp
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.measurement.counting import counted

STEPS = 9
INPUT = (3, 224, 224)


def prune_peer(
    model: nn.Module,
    calibration: list[tuple[Tensor, Tensor]],
    share: float,
    *,
    embed: bool,
    everywhere: bool,
) -> nn.Module:
    """A copy of `model` at or below `share` of its MACs; `everywhere` ranks across layers."""
    gradients = _gradients(model, calibration)
    limit = share * counted(model, INPUT).macs
    low, high = 0.0, 0.98
    best: tuple[int, nn.Module] | None = None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        smaller = _pruned(model, gradients, ratio, embed=embed, everywhere=everywhere)
        macs = counted(smaller, INPUT).macs
        if macs > limit:
            low = ratio
            continue
        high = ratio
        if best is None or macs > best[0]:
            best = macs, smaller
    if best is None:
        raise UserError(f"budget of {share:.0%} of the MACs is out of reach: ratios end at {high}.")
    return best[1]


def _gradients(model: nn.Module, calibration: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy over all calibration images, by parameter."""
    scratch = copy.deepcopy(model)
    scratch.zero_grad()
    total = sum(len(labels_B) for _, labels_B in calibration)
    for images_BCHW, labels_B in calibration:
        loss = F.cross_entropy(scratch(images_BCHW), labels_B, reduction="sum") / total
        loss.backward()
    return {name: p.grad for name, p in scratch.named_parameters() if p.grad is not None}


def _pruned(
    model: nn.Module, gradients: dict[str, Tensor], ratio: float, *, embed: bool, everywhere: bool
) -> nn.Module:
    smaller = copy.deepcopy(model)
    for name, parameter in smaller.named_parameters():
        parameter.grad = gradients[name].clone()
    attentions = [m for m in smaller.modules() if isinstance(m, Attention)]
    ignored: list[nn.Module] = [smaller.get_submodule("head")]
    if not embed:
        ignored += [m.proj for m in attentions]
        ignored += [m.fc2 for m in smaller.modules() if isinstance(m, Mlp)]
    for attention in attentions:
        # WHY: the fused kernel would scale by the new width; the plain one keeps `scale`.
        attention.fused_attn = False  # type: ignore[misc]
    pruner = tp.pruner.BasePruner(
        smaller,
        torch.zeros(1, *INPUT),
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=everywhere,
        pruning_ratio=ratio,
        ignored_layers=ignored,
        num_heads={attention.qkv: attention.num_heads for attention in attentions},
        prune_num_heads=False,
        prune_head_dims=True,
    )
    pruner.step()
    for attention in attentions:
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
    smaller.zero_grad()
    return smaller.eval()
