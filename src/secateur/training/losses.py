"""How far a student is from its teacher: in its output, its final tokens and every branch.

Legend: B batch, N tokens, D residual width, C outputs of the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.family import Family, family_of

TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A model taken apart, to be run branch by branch; shares the model's modules.

    `channels` are those of its stream that a narrower student has too; None for all.
    """

    model: nn.Module
    family: Family
    branches: tuple[tuple[str, nn.Module], ...]
    prefix_tokens: int
    channels: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a model made of a batch: the stream after each branch and at the end, and outputs."""

    after: Mapping[str, Tensor]
    stream_BND: Tensor
    logits_BC: Tensor


def walk_of(model: nn.Module, channels: Sequence[int] | None = None) -> Walk:
    """Take a model apart; it stays whole. Of its streams, only `channels` will be seen."""
    family = family_of(model)
    anatomy = family.read(model)
    return Walk(
        model=model,
        family=family,
        branches=tuple((b.id, family.through(model, b)) for b in anatomy.branches),
        prefix_tokens=anatomy.prefix_tokens,
        channels=None if channels is None else torch.tensor(channels),
    )


def see(walk: Walk, images_BCHW: Tensor) -> Seen:
    """Run a model on a batch and keep the streams."""
    x_BND = walk.family.embed(walk.model, images_BCHW)
    channels = None if walk.channels is None else walk.channels.to(x_BND.device)
    after = {}
    for branch_id, module in walk.branches:
        x_BND = module(x_BND)
        after[branch_id] = x_BND if channels is None else x_BND[..., channels]
    logits_BC = walk.family.head(walk.model, x_BND)
    stream_BND = x_BND if channels is None else x_BND[..., channels]
    return Seen(after=after, stream_BND=stream_BND, logits_BC=logits_BC)


def branch_loss(student: Walk, images_BCHW: Tensor, teacher: Seen) -> Tensor:
    """Mean over the student's branches of the relative error of the stream after each.

    Each branch starts from the student's own stream, so that it corrects what earlier ones got
    wrong, but no gradient passes from one branch to another.
    """
    x_BND = student.family.embed(student.model, images_BCHW).detach()
    losses = []
    for branch_id, module in student.branches:
        y_BND = module(x_BND)
        losses.append(token_error(y_BND, teacher.after[branch_id], student.prefix_tokens))
        x_BND = y_BND.detach()
    total: Tensor = sum(losses, start=x_BND.new_zeros(())) / max(1, len(losses))
    return total


def stream_loss(student: Seen, teacher: Seen, prefix_tokens: int) -> Tensor:
    """Mean over the student's branches of the relative error of the stream after each, end to end.

    Unlike in `branch_loss`, gradients pass through the whole model (FitNets, arXiv 1412.6550).
    """
    losses = [
        token_error(stream_BND, teacher.after[branch_id], prefix_tokens)
        for branch_id, stream_BND in student.after.items()
    ]
    total: Tensor = sum(losses, start=student.stream_BND.new_zeros(())) / max(1, len(losses))
    return total


def output_loss(
    student: Seen, teacher: Seen, prefix_tokens: int, temperature: float, token_weight: float
) -> Tensor:
    """T² KL(teacher ‖ student) at temperature T plus the weighted error of the final tokens.

    Hinton et al., arXiv 1503.02531, section 2, without the term of the labels.
    """
    kl = divergence(student.logits_BC / temperature, teacher.logits_BC / temperature)
    tokens = token_error(student.stream_BND, teacher.stream_BND, prefix_tokens)
    return temperature**2 * kl + token_weight * tokens


def divergence(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, mean over images."""
    return F.kl_div(
        student_BC.float().log_softmax(-1),
        teacher_BC.float().log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )


def token_error(student_BND: Tensor, teacher_BND: Tensor, prefix_tokens: int) -> Tensor:
    """Mean squared error over the teacher's variance: 1 is as bad as a constant.

    Prefix tokens (class token, registers) and patches are averaged apart, then count the same,
    since one token of 197 would otherwise weigh next to nothing.
    """
    parts = []
    for tokens in (slice(0, prefix_tokens), slice(prefix_tokens, None)):
        wanted_BND = teacher_BND[:, tokens].float()
        if wanted_BND.numel():
            spread = (wanted_BND - wanted_BND.mean((0, 1))).square().mean()
            error = (student_BND[:, tokens].float() - wanted_BND).square().mean()
            parts.append(error / (spread + TINY))
    total: Tensor = sum(parts[1:], start=parts[0]) / len(parts)
    return total
