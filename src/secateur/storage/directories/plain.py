"""A pruned model as a directory of its own library, for those who do not have secateur.

That takes one shape for all layers that the library's configuration can name. Whether it does is
found out by trying: the directory is opened by the library and must give the outputs of the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.models.types import Anatomy, AttentionShape, MlpShape
from secateur.models.weights import AttentionWeights
from secateur.storage.directories.existing import require_place
from secateur.storage.fingerprint import agree, probe, tolerance
from secateur.storage.identify import base_of
from secateur.storage.library import libraries
from secateur.storage.weights import common_dtype, fill_, misfit, refuse_not_finite
from secateur.whole import reason_of, replacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """The one shape of all layers; `blocks` are the paths of those that are left."""

    width: int
    heads: int
    dims: int
    hidden: int
    blocks: tuple[str, ...]


def save_plain(model: nn.Module, out: str | Path) -> tuple[int, float, float]:
    """Write `model` into the new or empty directory `out` as its own library would.

    Returns on how many images both were compared, by how much their first outputs differ at most,
    and the largest of these.
    UserError, with nothing written, where it has no such form: layers of different shapes, layers
    that the library lacks, or outputs that differ once it is opened again.
    """
    out = Path(out)
    require_place(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another output directory.")
    refuse_not_finite(model.state_dict(), "nothing was saved")
    base = base_of(model)
    library: Any = libraries.get(base.library)
    if not hasattr(library, "plain"):
        raise UserError(f"a model of {library.title} has no plain form; save it without plain.")
    shape = uniform(model)
    try:
        with replacing(out.resolve(), ()) as folder:
            source = library.plain(model, base, shape, folder)
            again = library.open(source, pretrained=True, num_classes=None, img_size=None).eval()
            expected = probe(model, base.preprocessing.input_size)
            largest = tolerance(expected, common_dtype(model.state_dict()))
            found = probe(again.to(next(model.parameters()).device), read(again).input_size)
            if not agree(found, expected, largest):
                raise UserError(
                    "the plain form gives other outputs than the model, so its library computes "
                    "something else with these shapes; save it without plain."
                )
            apart = float((found - expected).abs().max())
            return len(expected), apart, float(expected.abs().max())
    except OSError as error:
        raise UserError(f"cannot save to {out}: {reason_of(error)}.") from error


def uniform(model: nn.Module) -> Uniform:
    """The shape that all layers share; UserError naming what has another."""
    anatomy = read(model)
    kept = [block for block in anatomy.blocks if block.branches]
    if odd := [block.id for block in kept if len(block.branches) < 2]:
        raise UserError(f"{odd[0]} has lost one of its layers, which {REASON}.")
    if anatomy.stand_ins or not kept:
        raise UserError(f"linear layers stand in for some of its layers, which {REASON}.")
    attention, mlp = _one(anatomy, "attention"), _one(anatomy, "mlp")
    assert isinstance(attention, AttentionShape) and isinstance(mlp, MlpShape)
    if attention.qk != attention.vo:
        raise UserError(
            f"its heads have {attention.qk} query dims and {attention.vo} value dims, which "
            f"{REASON}."
        )
    return Uniform(
        width=anatomy.width,
        heads=attention.heads,
        dims=attention.qk,
        hidden=mlp.hidden,
        blocks=tuple(block.id for block in kept),
    )


REASON = "no plain form of its library holds; prune with one size per group, or save without plain"


def _one(anatomy: Anatomy, kind: str) -> AttentionShape | MlpShape:
    own = [branch for branch in anatomy.branches if branch.kind == kind]
    if odd := [branch.id for branch in own if branch.shape != own[0].shape]:
        raise UserError(f"{odd[0]} has another shape than {own[0].id}, which {REASON}.")
    return own[0].shape


@torch.no_grad()
def filled(
    model: nn.Module, plain: nn.Module, shape: Uniform, rebuild: Callable[[], nn.Module]
) -> nn.Module:
    """Give a stock model on the meta device the weights of a pruned one.

    Where the stock attention derives its temperature from its smaller dims, the dense one goes into
    the queries, times the root of the ratio. UserError where modules differ.
    """
    tensors = _renamed(model.state_dict(), shape.blocks)
    if reason := misfit(plain, tensors):
        raise UserError(f"its layers are not those of a plain form ({reason}); {REASON[5:]}.")
    fill_(plain, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, rebuild)
    family, old = family_of(plain), family_of(model)
    for mine, theirs in zip(read(plain).branches, read(model).branches, strict=True):
        new, dense = family.weights(plain, mine), old.weights(model, theirs)
        if not isinstance(new, AttentionWeights) or not isinstance(dense, AttentionWeights):
            continue
        ratio = dense.scale / new.scale
        if ratio != 1.0:
            qb = None if new.qb_HK is None else new.qb_HK * ratio
            family.assign_(plain, mine, replace(new, q_HKD=new.q_HKD * ratio, qb_HK=qb))
    return plain.eval()


def _renamed(tensors: Mapping[str, Tensor], blocks: tuple[str, ...]) -> dict[str, Tensor]:
    """The same with the blocks numbered anew."""
    first = blocks[0].rpartition(".")[0]
    numbers = {path: f"{first}.{i}" for i, path in enumerate(blocks)}
    found = {}
    for name, tensor in tensors.items():
        parts = name.removeprefix(f"{first}.").partition(".")
        path = f"{first}.{parts[0]}"
        found[f"{numbers[path]}.{parts[2]}" if path in numbers else name] = tensor
    return found
