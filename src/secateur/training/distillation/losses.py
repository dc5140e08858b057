"""How far a student is from its teacher: in its output, its final tokens and every branch.

Legend: B batch, N tokens, D residual width, C outputs of the head.
"""

from torch import Tensor

from secateur.models.runner import Runner, Trace
from secateur.statistics.divergence import divergence as measured_divergence

TINY = 1e-12


def branch_loss(student: Runner, images_BCHW: Tensor, teacher: Trace) -> Tensor:
    """Mean over the student's branches of the relative error of the stream after each.

    Each branch starts from the student's own stream, so that it corrects what earlier ones got
    wrong, but no gradient passes from one branch to another.
    """
    x_BND, prefix_tokens = student.embed(images_BCHW).detach(), student.anatomy.prefix_tokens
    losses = []
    for place, name in enumerate(student.names):
        y_BND = student.step(place, x_BND)
        losses.append(token_error(y_BND, teacher.after[name], prefix_tokens))
        x_BND = y_BND.detach()
    total: Tensor = sum(losses, start=x_BND.new_zeros(())) / max(1, len(losses))
    return total


def stream_loss(student: Trace, teacher: Trace, prefix_tokens: int) -> Tensor:
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
    student: Trace, teacher: Trace, prefix_tokens: int, temperature: float, token_weight: float
) -> Tensor:
    """T² KL(teacher ‖ student) at temperature T plus the weighted error of the final tokens.

    Hinton et al., arXiv 1503.02531, section 2, without the term of the labels.
    """
    kl = divergence(student.logits_BC / temperature, teacher.logits_BC / temperature)
    tokens = token_error(student.stream_BND, teacher.stream_BND, prefix_tokens)
    return temperature**2 * kl + token_weight * tokens


def divergence(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats, mean over images."""
    return measured_divergence(teacher_BC.float(), student_BC.float()).mean()


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
