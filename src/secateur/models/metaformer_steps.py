"""The way of the stream through an EfficientFormer: branches, and what stands between them.

Legend: D residual width (differs from stage to stage).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

import torch
from timm.layers import Mlp
from timm.models.efficientformer import (
    Attention,
    ConvMlpWithNorm,
    EfficientFormer,
    EfficientFormerStage,
    Flat,
    MetaBlock1d,
    MetaBlock2d,
    Pooling,
)
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.folding import add_to_bias_
from secateur.models.metaformer_modules import MixerPart, MlpPart, ShiftedReLU
from secateur.models.modules import EmptyBlock

BLOCKS = (MetaBlock1d, MetaBlock2d, MixerPart, MlpPart, EmptyBlock)
STEM_STRIDE = 4
SIDE = 7
"""Side of the last stage's grid where no attention layer tells: that of 224 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that the stream meets on its way: a branch (`part` says which), or what is none.

    `side` is that of the grid before it, `flat` whether the host holds tokens there.
    """

    path: str
    module: nn.Module
    part: str
    stage: int
    side: int
    flat: bool

    @property
    def is_branch(self) -> bool:
        """Whether it can be made smaller or dropped."""
        return self.part in ("attention", "mlp")

    def alone(self) -> nn.Module:
        """As a module on grids, or on tokens behind the last grid."""
        if self.part == "downsample":
            return self.module
        part = MlpPart(self.module) if self.part == "mlp" else MixerPart(self.module)
        return part.train(self.module.training)


def last_side(host: EfficientFormer) -> int:
    """Side of the last stage's grid, from the table of position biases if there is one left."""
    for module in host.modules():
        if isinstance(module, Attention):
            return math.isqrt(cast(Tensor, module.attention_bias_idxs).shape[0])
    return SIDE


def first_side(host: EfficientFormer) -> int:
    """Side of the first stage's grid: every strided convolution halves it."""
    down = sum(not isinstance(stage.downsample, nn.Identity) for stage in _stages(host))
    return last_side(host) << down


def block_paths(host: EfficientFormer) -> list[str]:
    """Paths of all blocks, in order."""
    return [
        f"stages.{number}.blocks.{index}"
        for number, stage in enumerate(_stages(host))
        for index, block in enumerate(stage.blocks)
        if not isinstance(block, Flat)
    ]


def block_of(path: str) -> str:
    """The block that a branch stands in."""
    return path.rpartition(".")[0]


def steps_of(host: EfficientFormer) -> list[Step]:
    """All that the stream meets between stem and final norm, in order."""
    side, flat = first_side(host), False
    steps: list[Step] = []

    def meet(path: str, module: nn.Module, part: str, stage: int) -> None:
        steps.append(Step(path=path, module=module, part=part, stage=stage, side=side, flat=flat))

    for number, stage in enumerate(_stages(host)):
        if not isinstance(stage.downsample, nn.Identity):
            meet(f"stages.{number}.downsample", stage.downsample, "downsample", number)
            side //= 2
        for index, block in enumerate(stage.blocks):
            if isinstance(block, Flat):
                flat = True
                continue
            path = f"stages.{number}.blocks.{index}"
            for name, part in _parts(path, block):
                meet(f"{path}.{name}", block, part, number)
    return steps


def _stages(host: EfficientFormer) -> list[EfficientFormerStage]:
    return [cast(EfficientFormerStage, stage) for stage in host.stages]


def _parts(path: str, block: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a block's parts and what they are; UserError for any that cannot be read."""
    if type(block) not in BLOCKS:
        raise UserError(
            f"{path} is a {type(block).__name__}; of EfficientFormer's blocks only MetaBlock1d and "
            "MetaBlock2d are supported."
        )
    if hasattr(block, "token_mixer"):
        mixer = block.token_mixer
        if type(mixer) not in (Attention, Pooling):
            raise UserError(
                f"{path}.token_mixer is a {type(mixer).__name__}, which secateur cannot read; "
                "supported are timm's Attention with position biases and Pooling."
            )
        yield "token_mixer", "attention" if isinstance(mixer, Attention) else "pooling"
    if hasattr(block, "mlp"):
        if type(block.mlp) not in (Mlp, ConvMlpWithNorm):
            raise UserError(
                f"{path}.mlp is a {type(block.mlp).__name__}, an MLP that secateur cannot read; "
                "supported are Mlp and ConvMlpWithNorm."
            )
        yield "mlp", "mlp"


def before(host: EfficientFormer, branch_id: str) -> list[Step]:
    """The steps before the place of a branch, whether it is still there or was dropped."""
    stage = _place(branch_id)[0]

    def earlier(step: Step) -> bool:
        if step.part == "downsample":
            return step.stage <= stage
        return _place(step.path) < _place(branch_id)

    return list(takewhile(earlier, steps_of(host)))


def _place(path: str) -> tuple[int, int, int]:
    """Stage, block and part as numbers, in the order in which the stream meets them."""
    _, stage, _, block, part = path.split(".")
    return int(stage), int(block), int(part == "mlp")


def since_branch(steps: list[Step]) -> list[Step]:
    """The steps after the last branch."""
    return list(takewhile(lambda step: not step.is_branch, reversed(steps)))[::-1]


@torch.no_grad()
def add_to_part_(step: Step, constant_D: Tensor) -> None:
    """Let the update of a branch grow by a constant."""
    number = "1" if step.part == "attention" else "2"
    inner = step.module.get_submodule("token_mixer" if number == "1" else "mlp")
    norm = getattr(inner, "norm2", None)
    writer = inner.get_submodule("proj" if number == "1" else "fc2")
    # WHY behind the batch norm: before it, training mode would take the constant out again.
    carrier = norm if isinstance(norm, nn.BatchNorm2d) else writer
    gamma_D = step.module.get_parameter(f"ls{number}.gamma")
    unscaled_D = (constant_D / gamma_D).to(gamma_D.dtype)
    # WHY: as in `folding.add_to_writer_`, a gamma of almost zero moves into the weights.
    if not bool(torch.isfinite(unscaled_D).all()):
        weight = carrier.get_parameter("weight")
        weight.mul_(gamma_D.view(-1, *[1] * (weight.ndim - 1)))
        if carrier.bias is not None:
            carrier.get_parameter("bias").mul_(gamma_D)
        gamma_D.fill_(1.0)
        unscaled_D = constant_D.to(gamma_D.dtype)
    add_to_bias_(carrier, unscaled_D)


@torch.no_grad()
def add_behind_stem_(host: EfficientFormer, constant_D: Tensor) -> None:
    """The stem ends in a ReLU, which gets a bias behind it."""
    act = host.get_submodule("stem.act2")
    if not isinstance(act, ShiftedReLU):
        like = host.get_parameter("stem.conv2.weight")
        act = ShiftedReLU(like.shape[0], device=like.device).to(like.dtype)
        act.bias.requires_grad_(like.requires_grad)
        host.set_submodule("stem.act2", act.train(host.stem.training))
    act.bias.add_(constant_D.to(act.bias))
