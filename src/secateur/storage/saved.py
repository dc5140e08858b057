"""Models from the directories that secateur writes. Nothing in them is ever executed."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError, short
from secateur.models.host import host_of
from secateur.models.norms import hold_norms_
from secateur.storage.base import Base, build_like
from secateur.storage.directories.existing import mend_model
from secateur.storage.fingerprint import agree, probe
from secateur.storage.shapes import add_biases_, resize_
from secateur.storage.spec import WEIGHTS, Spec, read_spec
from secateur.storage.untrusted.bounds import (
    UNBUILDABLE,
    check_arguments,
    check_dense,
    check_input,
    few_modules,
)
from secateur.storage.weights import common_dtype, fill_, misfit
from secateur.tensorfiles import entries_of


def load_saved(directory: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The model of a directory written by `secateur.storage.save`, in eval mode.

    Only `spec.json` and `model.safetensors` are opened, once a replacement that was cut short is
    complete (Advice tells of it). It carries `secateur_base` and
    `secateur_spec`. Raises UserError, naming the file and the reason, when anything is missing,
    damaged, of another version, or does not give the outputs that the model had when saved.
    """
    mend_model(directory)
    spec = read_spec(directory)
    path = directory / WEIGHTS
    tensors = _read_weights(path, spec)
    try:
        base = spec.base.base()
        model = assemble(base, spec, tensors)
    except UserError as error:
        raise UserError(f"{directory} cannot be rebuilt: {error}") from error
    except UNBUILDABLE as error:
        # WHY: libraries raise what they like for sizes that only a changed spec can name.
        reason = short(error).rstrip(".")
        raise UserError(f"{directory} cannot be rebuilt: {reason}.") from error
    _check_fingerprint(model, spec, directory)
    model.__dict__.update(secateur_base=base, secateur_spec=spec)
    return model.to(device)


def assemble(base: Base, spec: Spec, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The pruned model in eval mode: base on the meta device → shapes → tensors, strictly."""
    shapes = {key: None if size is None else size.shape() for key, size in spec.shapes.items()}
    check_arguments(base.arguments, len(shapes))
    with few_modules(len(shapes)):
        model = build_like(base, tensors.keys())
    host = host_of(model)
    check_input(spec.fingerprint.input_size, host.anatomy, tensors)
    resize_(host, shapes, spec.widths, spec.stand_ins)
    if spec.merges:
        host.family.put_merges_(model, spec.merges)
    if spec.exact_tail:
        host.family.put_tail_(model)
    return complete_(model, base, spec.added_biases, tensors, spec.held_norms, spec.uncentred_norms)


def complete_(
    resized: nn.Module,
    base: Base,
    added_biases: Iterable[str],
    tensors: Mapping[str, Tensor],
    held: Mapping[str, int] | None = None,
    uncentred: Collection[str] = (),
) -> nn.Module:
    """Give a resized model on the meta device what it still lacks.

    That is its held norms, by path with the channels they miss, and which of them are uncentred,
    added biases, tensors and preprocessing.
    """
    hold_norms_(resized, held or {}, uncentred)
    add_biases_(resized, added_biases, tensors)
    if reason := misfit(resized, tensors):
        raise UserError(f"the weights do not fit the shapes: {reason}.")
    fill_(resized, tensors, lambda: _dense(base, tensors))
    _give_preprocessing_(resized, base.preprocessing)
    return resized.eval()


def _dense(base: Base, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The dense model with real buffers."""
    check_dense(build_like(base, tensors.keys()), tensors)
    return build_like(base, tensors.keys(), "cpu")


def _read_weights(path: Path, spec: Spec) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing; the directory is not complete.")
    size = path.stat().st_size
    if size != spec.weights.bytes:
        raise UserError(
            f"{path} has {size} bytes instead of {spec.weights.bytes}; it is truncated or not the "
            "file that was saved."
        )
    if sha256(path) != spec.weights.sha256:
        raise UserError(f"{path} was changed after it was saved (its SHA-256 differs).")
    try:
        entries_of(path)
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no readable safetensors file: {short(error)}.") from error
    if str(common_dtype(tensors)) != f"torch.{spec.weights.dtype}":
        raise UserError(f"{path} does not hold {spec.weights.dtype} weights as its spec says.")
    return tensors


def _check_fingerprint(model: nn.Module, spec: Spec, directory: Path) -> None:
    fingerprint = spec.fingerprint
    try:
        expected = torch.tensor(fingerprint.logits, dtype=torch.float64)
        found = probe(model, fingerprint.input_size, fingerprint.seed)
    except UNBUILDABLE as error:
        raise UserError(
            f"{directory} cannot be run on its fingerprint's input: {short(error)}."
        ) from error
    if not agree(found, expected, fingerprint.tolerance):
        largest = (
            f"{float((found - expected).abs().max()):.2g}"
            if found.shape == expected.shape
            else f"of shape {tuple(found.shape)}"
        )
        versions = short(", ".join(f"{name} {number}" for name, number in spec.versions.items()))
        raise UserError(
            f"{directory} does not give the outputs it was saved with (difference {largest}, "
            f"allowed {fingerprint.tolerance:.2g}); its files do not belong together, or a library "
            f"has changed since it was saved with {versions}."
        )


def _give_preprocessing_(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Put the saved preprocessing where `Preprocessing.of` and timm look for it."""
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in preprocessing.to_json().items()}
    config = {**(getattr(model, "pretrained_cfg", None) or {}), **own}
    model.__dict__.update(pretrained_cfg=config, default_cfg=config)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
