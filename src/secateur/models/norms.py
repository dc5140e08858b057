"""Norms over a stream of which channels were removed that stood (almost) still.

A norm over what is left has other statistics than the dense one. Where removed channels P stand at
known values c, the dense statistics follow from the kept channels S alone, D = S + P:

    m = (sum_S x + sum_P c) / D        v = (sum_S (x - m)^2 + sum_P (c - m)^2) / D

and since normalised channels z = (x - m) / sqrt(v) sum to zero over D, what readers saw of removed
ones was z_P = (c_P - mean c) / sqrt(v) - (sum_S z) / P: the second part, all there is where the
c_P are equal, is linear in what is left and folds into the readers. The first is held at the mean
statistics. The idea is that of CompensatedLayerNorm, arXiv 2606.14346; the fold is derived here.

Legend: D residual width, S channels kept, P removed, R rows of a reader.
"""

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import UserError, short
from secateur.models.derived.keyless import rows_with_bias
from secateur.models.stream import Held

EPSILONS = ("eps", "variance_epsilon")
"""What the norms of torch, timm and transformers call it."""

TINY = 1e-6
"""Scales of a norm below this share of the largest one move into its readers."""


class HeldNorm(nn.Module):
    """LayerNorm (RMS norm without `centre`) in which `missing` channels count as constants.

    `held_sum` and `held_square` are the sums of their values and squares.
    """

    held_sum: Tensor
    held_square: Tensor

    def __init__(
        self, like: Tensor, missing: int, *, eps: float, centre: bool, bias: bool = True
    ) -> None:
        """A norm of as many channels as `like` has, of its type and on its device.

        With `missing` 0 it is a plain norm.
        """
        super().__init__()
        self.missing, self.eps, self.centre = missing, eps, centre
        self.weight = nn.Parameter(torch.ones_like(like))
        self.bias = nn.Parameter(torch.zeros_like(like)) if bias else None
        held_type = torch.promote_types(like.dtype, torch.float32)
        for name in ("held_sum", "held_square"):
            self.register_buffer(name, torch.zeros((), dtype=held_type, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        whole = self.weight.shape[0] + self.missing
        if self.centre:
            mean = (wide.sum(-1, keepdim=True) + self.held_sum) / whole
            wide = wide - mean
            apart = self.held_square - 2 * mean * self.held_sum + self.missing * mean.square()
        else:
            apart = self.held_square
        power = (wide.square().sum(-1, keepdim=True) + apart) / whole
        normal = wide * (power + self.eps).rsqrt() * self.weight
        return (normal if self.bias is None else normal + self.bias).to(x.dtype)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or an RMS norm over the last axis, torch's or a library's.

    Libraries have RMS norms of their own, which share no base class; they bear the name.
    """
    own = isinstance(module, nn.LayerNorm | nn.RMSNorm | HeldNorm)
    name = type(module).__name__.lower()
    return own or (name.endswith("rmsnorm") and hasattr(module, "weight"))


def can_hold(norm: nn.Module) -> bool:
    """Whether removed channels of this norm can be held."""
    return is_norm(norm) and getattr(norm, "weight", None) is not None


@torch.no_grad()
def held_norm(norm: nn.Module, readers: list[nn.Linear], kept_S: Tensor, held: Held) -> HeldNorm:
    """The norm of the kept channels with the others held at their means; `readers` are adapted.

    Readers must still have their columns of the kept channels only removed by the caller; what
    they saw of the removed ones is folded into those columns and their biases. A reader without
    a bias loses the constant part of it.
    """
    new = _successor(norm, kept_S, held)
    weight_D, bias_D = affine(norm)
    gone = removed(weight_D.numel(), kept_S.to(weight_D.device))
    mean_D = held.mean_D.to(weight_D)
    still_P = (mean_D[gone] - float(new.held_sum) / new.missing) if new.centre else mean_D[gone]
    constant_P = bias_D[gone] + weight_D[gone] * still_P / _deviation(norm, held)
    scale_S = weight_D[~gone]
    safe_S = scale_S.abs() > TINY * scale_S.abs().max()
    own_S = torch.where(safe_S, scale_S, torch.ones_like(scale_S))
    for reader in readers:
        w_RD = reader.weight.double()
        shared_R = w_RD[:, gone] @ weight_D[gone] / new.missing
        w_RS = w_RD[:, ~gone] * scale_S - (shared_R[:, None] if new.centre else 0.0)
        w_RS = w_RS / own_S
        if reader.bias is not None:
            more_R = (w_RD[:, ~gone] - w_RS) @ bias_D[~gone] + w_RD[:, gone] @ constant_P
            # WHY: a constant of all keys changes no softmax, so keys may lack a bias for it.
            reader.bias.add_(rows_with_bias(reader, more_R).to(reader.bias.dtype))
        reader.weight[:, ~gone] = w_RS.to(reader.weight.dtype)
    new.weight.copy_(own_S)
    if new.bias is not None:
        new.bias.copy_(bias_D[~gone])
    for parameter in new.parameters():
        parameter.requires_grad_(next(norm.parameters(), readers[0].weight).requires_grad)
    return new.train(norm.training)


@torch.no_grad()
def uncentred_norm(norm: nn.Module) -> HeldNorm:
    """An RMS norm of the same channels, without scale and shift (ones and zeros).

    Equal to `norm` but for these where the channels it sees sum to zero.
    """
    before = norm if isinstance(norm, HeldNorm) else None
    weight_D = norm.get_parameter("weight")
    new = _like(norm, weight_D.detach(), 0 if before is None else before.missing)
    new.centre = False
    if before is not None:
        new.held_square.copy_(before.held_square)
    return new.requires_grad_(weight_D.requires_grad).train(norm.training)


def hold_norms_(
    model: nn.Module, missing: Mapping[str, int], uncentred: Collection[str] = ()
) -> None:
    """Replace the norms at these paths by held ones with so many channels missing, unfilled.

    Those in `uncentred` subtract no mean, whatever the norm did that they replace.
    """
    if odd := sorted(set(uncentred) - set(missing)):
        raise UserError(
            f"'{short(odd[0])}' is said to be uncentred, but not how many channels it misses."
        )
    for path, count in missing.items():
        try:
            norm = model.get_submodule(path)
        except AttributeError as error:
            raise UserError(f"there is no norm '{short(path)}' to hold channels.") from error
        if not can_hold(norm) or isinstance(norm, HeldNorm):
            raise UserError(
                f"'{short(path)}' is a {type(norm).__name__}, which cannot hold channels."
            )
        new = _like(norm, norm.get_parameter("weight").detach(), count)
        new.centre = new.centre and path not in uncentred
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new.train(norm.training))


def held_norms(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, int]:
    """Paths of the held norms among named modules, with how many channels they miss."""
    return {path: norm.missing for path, norm in modules if isinstance(norm, HeldNorm)}


def uncentred_norms(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Paths of the held norms among named modules that subtract no mean."""
    return sorted(path for path, m in modules if isinstance(m, HeldNorm) and not m.centre)


def centres(norm: nn.Module) -> bool:
    """Whether a norm subtracts the mean of its channels."""
    return norm.centre if isinstance(norm, HeldNorm) else isinstance(norm, nn.LayerNorm)


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm, fp64."""
    weight_D, bias = norm.get_parameter("weight").detach().double(), getattr(norm, "bias", None)
    return weight_D, torch.zeros_like(weight_D) if bias is None else bias.detach().double()


def removed(width: int, kept_S: Tensor) -> Tensor:
    """A mask (D,) of the channels that are not kept, on the device of the indices."""
    gone_D = torch.ones(width, dtype=torch.bool, device=kept_S.device)
    gone_D[kept_S] = False
    return gone_D


def _successor(norm: nn.Module, kept_S: Tensor, held: Held) -> HeldNorm:
    gone = removed(held.mean_D.numel(), kept_S.to(held.mean_D.device))
    before = norm.missing if isinstance(norm, HeldNorm) else 0
    weight_D = norm.get_parameter("weight").detach()
    new = _like(norm, weight_D[: kept_S.numel()], before + int(gone.sum()))
    new.held_sum.add_(held.mean_D[gone].sum().to(new.held_sum))
    new.held_square.add_(held.square_D[gone].sum().to(new.held_square))
    if isinstance(norm, HeldNorm):
        new.held_sum.add_(norm.held_sum)
        new.held_square.add_(norm.held_square)
    return new


def _like(norm: nn.Module, weight_S: Tensor, missing: int) -> HeldNorm:
    bias = getattr(norm, "bias", None) is not None
    return HeldNorm(weight_S, missing, eps=eps_of(norm), centre=centres(norm), bias=bias)


def _deviation(norm: nn.Module, held: Held) -> float:
    """The root of the mean variance that the dense norm divided by."""
    total, square = float(held.mean_D.sum()), float(held.square_D.sum())
    whole = held.mean_D.numel()
    if isinstance(norm, HeldNorm):
        total, square = total + float(norm.held_sum), square + float(norm.held_square)
        whole += norm.missing
    mean = total / whole if centres(norm) else 0.0
    return math.sqrt(max(square / whole - mean**2, 0.0) + eps_of(norm))


def eps_of(norm: nn.Module) -> float:
    """What a norm adds to the variance; torch's default in fp32 where it names none."""
    found = (getattr(norm, name, None) for name in EPSILONS)
    return next((float(e) for e in found if e is not None), torch.finfo(torch.float32).eps)
