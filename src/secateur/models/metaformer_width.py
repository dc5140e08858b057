"""Make the residual stream of one stage of an EfficientFormer narrower.

Members are what writes the stream first (the stem, or the strided convolution before the stage),
the scales of pooling mixers, norms, scales, readers and writers of the branches, and what reads it
last (the next strided convolution, or final norm and classifiers). Legend: D residual width.
"""

from collections.abc import Mapping
from typing import cast

import torch
from timm.models.efficientformer import EfficientFormer
from torch import Tensor, nn

from secateur.models.counting import parameters
from secateur.models.metaformer_modules import ShiftedReLU
from secateur.models.metaformer_steps import Step, first_side, steps_of
from secateur.models.narrowing import keep_columns_, keep_rows_, keep_vector_
from secateur.models.norms import can_hold, held_norm
from secateur.models.stream import END, Held, StreamWeights
from secateur.models.types import Cost, Joint, Rate, Stream

HEADS = ("head", "head_dist")


def why_not(host: EfficientFormer) -> str | None:
    """Why the streams of this model cannot be made narrower; None if they can."""
    starts = [step.stage for step in steps_of(host) if step.part == "downsample"]
    if starts == list(range(1, len(host.stages))):
        return None
    return "not every stage but the first begins with a strided convolution, so some share a stream"


def streams_of(host: EfficientFormer) -> tuple[Stream, ...]:
    """One stream per stage, priced but for the strided convolutions between two."""
    steps = steps_of(host)
    streams = []
    for number in range(len(host.stages)):
        own = [step for step in steps if step.stage == number]
        scales = sum(step.part == "pooling" for step in own)
        writer = _first_writer(host, number)
        norm = host.get_submodule(_first_norm(number))
        params, macs = parameters(norm) // writer.out_channels + scales, 0
        if number == 0:
            inputs = writer.weight[0].numel()
            shifted = isinstance(host.get_submodule("stem.act2"), ShiftedReLU)
            params += inputs + int(shifted)
            macs += first_side(host) ** 2 * inputs
        params += int(writer.bias is not None)
        if number == len(host.stages) - 1:
            rows = sum(head.out_features for head in _heads(host))
            params += parameters(host.norm) // writer.out_channels + rows
            macs += rows
        rate = Rate(per_width=Cost(params=params, macs=macs))
        width = writer.out_channels
        streams.append(Stream(id=f"stages.{number}", width=width, stage=number, ends=rate))
    return tuple(streams)


def joints_of(host: EfficientFormer) -> tuple[Joint, ...]:
    """The strided convolutions, which cost by the channels on both sides."""
    joints = []
    for step in steps_of(host):
        if step.part == "downsample":
            conv = _convolution(step)
            taps = conv.kernel_size[0] * conv.kernel_size[1]
            joints.append(
                Joint(
                    first=f"stages.{step.stage - 1}",
                    second=f"stages.{step.stage}",
                    per_pair=Cost(params=taps, macs=(step.side // 2) ** 2 * taps),
                )
            )
    return tuple(joints)


@torch.no_grad()
def narrow_stage_(
    host: EfficientFormer, stage: int, kept_D: Tensor, held: Mapping[str, Held]
) -> None:
    """Keep the channels `kept_D` of one stage in every member.

    Where `held` says what stood in the removed ones, by branch and `END`, readers count them as
    constants: exactly, but for the rim of the next grid, where a strided convolution sees zeros
    beyond the edge.
    """
    steps = steps_of(host)
    own = [step for step in steps if step.stage == stage]
    following = next((s for s in steps if s.stage == stage + 1 and s.part == "downsample"), None)
    if following is None:
        _narrow_head_(host, kept_D, held.get(END))
    else:
        _narrow_inputs_(_convolution(following), kept_D, held.get(END))
    for step in own:
        if step.part == "pooling":
            keep_vector_(step.module.get_submodule("ls1"), kept_D)
        elif step.is_branch:
            _narrow_part_(step, kept_D, held.get(step.path))
    keep_rows_(_first_writer(host, stage), kept_D)
    keep_norm_(host.get_submodule(_first_norm(stage)), kept_D)
    if stage == 0:
        keep_vector_(host.get_submodule("stem.act2"), kept_D)


def stage_ends(host: EfficientFormer, stage: int) -> StreamWeights:
    """What writes the stream of a stage first, and what reads it last."""
    writer = _first_writer(host, stage)
    readers = {}
    for step in steps_of(host):
        if step.part == "downsample" and step.stage == stage + 1:
            readers[step.path] = _convolution(step).weight.detach().transpose(0, 1).flatten(1)
    if not readers:
        readers = {name: head.weight.detach().T for name, head in _named_heads(host).items()}
    name = f"stages.{stage}.downsample" if stage else "stem"
    return StreamWeights(writers={name: writer.weight.detach().flatten(1)}, readers=readers)


def _narrow_head_(host: EfficientFormer, kept_D: Tensor, held: Held | None) -> None:
    heads = _heads(host)
    if held is not None and heads and can_hold(host.norm):
        host.norm = held_norm(host.norm, heads, kept_D, held)
    keep_vector_(host.norm, kept_D)
    for head in heads:
        keep_columns_(head, kept_D)
    host.num_features = host.head_hidden_size = kept_D.numel()
    host.feature_info[-1]["num_chs"] = kept_D.numel()


def _narrow_part_(step: Step, kept_D: Tensor, held: Held | None) -> None:
    number = 1 if step.part == "attention" else 2
    inner = step.module.get_submodule("token_mixer" if number == 1 else "mlp")
    reader = inner.get_submodule("qkv" if number == 1 else "fc1")
    norm = getattr(step.module, f"norm{number}", nn.Identity())
    if isinstance(reader, nn.Linear):
        if held is not None and can_hold(norm):
            norm = held_norm(norm, [reader], kept_D, held)
            step.module.set_submodule(f"norm{number}", norm)
        keep_columns_(reader, kept_D)
        keep_vector_(norm, kept_D, step.path)
    else:
        _narrow_inputs_(cast(nn.Conv2d, reader), kept_D, held)
    keep_rows_(inner.get_submodule("proj" if number == 1 else "fc2"), kept_D)
    if isinstance(behind := getattr(inner, "norm2", None), nn.BatchNorm2d):
        keep_norm_(behind, kept_D)
    keep_vector_(step.module.get_submodule(f"ls{number}"), kept_D, step.path)


def _narrow_inputs_(conv: nn.Conv2d, kept_D: Tensor, held: Held | None) -> None:
    """Keep these inputs of a convolution; the others stand at their means in its bias."""
    weight = conv.weight.detach()
    index = kept_D.to(weight.device)
    if held is not None and conv.bias is not None:
        gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        gone[index] = False
        constant = weight[:, gone].double().sum((2, 3)) @ held.mean_D.to(weight.device)[gone]
        conv.bias.add_(constant.to(conv.bias.dtype))
    conv.weight = nn.Parameter(weight.index_select(1, index), conv.weight.requires_grad)
    conv.in_channels = kept_D.numel()


def keep_norm_(norm: nn.Module, kept_D: Tensor) -> None:
    """Keep these channels of a batch norm, with their statistics."""
    keep_vector_(norm, kept_D)
    if isinstance(norm, nn.BatchNorm2d):
        for name in ("running_mean", "running_var"):
            buffer = norm.get_buffer(name)
            setattr(norm, name, buffer.index_select(0, kept_D.to(buffer.device)))
        norm.num_features = kept_D.numel()


def _first_writer(host: EfficientFormer, stage: int) -> nn.Conv2d:
    path = f"stages.{stage}.downsample.conv" if stage else "stem.conv2"
    return cast(nn.Conv2d, host.get_submodule(path))


def _first_norm(stage: int) -> str:
    return f"stages.{stage}.downsample.norm" if stage else "stem.norm2"


def _convolution(step: Step) -> nn.Conv2d:
    return cast(nn.Conv2d, step.module.get_submodule("conv"))


def _named_heads(host: EfficientFormer) -> dict[str, nn.Linear]:
    found = {name: getattr(host, name) for name in HEADS}
    return {name: head for name, head in found.items() if isinstance(head, nn.Linear)}


def _heads(host: EfficientFormer) -> list[nn.Linear]:
    return list(_named_heads(host).values())
