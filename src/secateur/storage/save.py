"""Write a pruned model: spec.json, model.safetensors and README.md, whole or not at all."""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.family import family_of
from secateur.models.norms import held_norms, uncentred_norms
from secateur.storage.base import Base, build
from secateur.storage.card import card
from secateur.storage.fingerprint import SEED, agree, probe, tolerance
from secateur.storage.saved import complete_, sha256
from secateur.storage.shapes import added_biases, resize_, shapes_of, widths_of
from secateur.storage.spec import CARD, SPEC, WEIGHTS, BaseSpec, Spec, present_versions, read_spec
from secateur.storage.weights import common_dtype, refuse_not_finite

OTHER_DEVICE = 0.02
"""Largest difference between the CPU and another device, as a share of the largest logit."""


def check_out(out: str | Path) -> None:
    """Refuse, before any long work, an output directory that could not be written.

    Free names, empty directories, and directories saved by secateur, which will be replaced, are
    allowed. Creates nothing. Raises UserError for all others, and without write permission.
    """
    out = Path(out)
    if out.is_dir():
        _refuse_foreign(out)
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out} exists and is no directory; choose another output directory.")
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{out} cannot be made: {parent} is no directory.")
    trial = parent / f".secateur-{secrets.token_hex(4)}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise UserError(
            f"cannot write to {parent} ({_reason(error)}); choose another output directory."
        ) from error


def save(
    model: nn.Module,
    out: str | Path,
    *,
    base: Base,
    provenance: Mapping[str, object],
    results: Mapping[str, object],
    extra_files: Mapping[str, str | bytes] | None = None,
) -> None:
    """Write `model`, pruned from `base`, into the directory `out`, atomically.

    The files are written beside `out`, the model is rebuilt from them and must give the outputs
    of `model`; only then they take the place of `out`, which may hold an earlier saved model.
    `provenance` and `results` are made plain JSON; `extra_files` maps further file names, such as
    report.html, to their contents. Raises UserError, leaving all as it was, when the directory
    cannot be written, the disk is full, weights are not finite, or the rebuild differs.
    """
    out = Path(out)
    check_out(out)
    extra = dict(extra_files or {})
    for name in extra:
        if Path(name).name != name or name in ("", "..", SPEC, WEIGHTS, CARD):
            raise UserError(f"'{name}' is no name for a further file of a saved model.")
    tensors = _separate(model.state_dict())
    refuse_not_finite(tensors, "nothing was saved")
    out = out.resolve()
    with _whole(out) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # WHY: safetensors makes files that only their owner can read, unlike those beside it.
        (folder / WEIGHTS).chmod(0o666 & ~_umask())
        spec = _spec(model, base, folder / WEIGHTS, provenance, results)
        (folder / SPEC).write_text(_json(spec), encoding="utf-8")
        (folder / CARD).write_text(card(out.name, spec), encoding="utf-8")
        for name, content in extra.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            (folder / name).write_bytes(data)
        read_spec(folder)


def _umask() -> int:
    """The permissions that new files do not get; can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _spec(
    model: nn.Module,
    base: Base,
    weights: Path,
    provenance: Mapping[str, object],
    results: Mapping[str, object],
) -> Spec:
    """Describe `model`, and prove that the description and the file give it back."""
    again = build(base)
    family = family_of(again)
    dense = family.read(again)
    shapes = shapes_of(model, dense)
    widths = widths_of(model, dense)
    stand_ins = [layer.id for layer in family.read(model).stand_ins]
    resize_(again, family, dense, shapes, widths, stand_ins)
    held = held_norms(model.named_modules())
    uncentred = uncentred_norms(model.named_modules())
    biases = added_biases(model, again)
    tensors = load_file(weights)
    logits = probe(complete_(again, base, biases, tensors, held, uncentred), dense.input_size)
    dtype = common_dtype(tensors)
    on_cpu = next(model.parameters()).device.type == "cpu"
    _refuse_other_outputs(probe(model, dense.input_size), logits, dtype, on_cpu)
    return Spec.model_validate(
        {
            "base": BaseSpec.of(base).model_dump(),
            "shapes": {
                key: None if shape is None else to_jsonable_python(shape)
                for key, shape in shapes.items()
            },
            "stand_ins": stand_ins,
            "widths": widths,
            "held_norms": held,
            "uncentred_norms": uncentred,
            "added_biases": biases,
            "weights": {
                "sha256": sha256(weights),
                "bytes": weights.stat().st_size,
                "dtype": str(dtype).removeprefix("torch."),
            },
            "fingerprint": {
                "seed": SEED,
                "input_size": dense.input_size,
                "logits": logits.tolist(),
                "tolerance": tolerance(logits, dtype),
            },
            "versions": present_versions(),
            "provenance": _plain(provenance),
            "results": _plain(results),
        }
    )


def _refuse_other_outputs(mine: Tensor, again: Tensor, dtype: torch.dtype, on_cpu: bool) -> None:
    if not bool(mine.isfinite().all()):
        raise UserError("the model's outputs are NaN or infinite; nothing was saved.")
    largest = max(tolerance(mine, dtype), 0.0 if on_cpu else OTHER_DEVICE * float(mine.abs().max()))
    if not agree(again, mine, largest):
        raise UserError(
            "the model cannot be rebuilt from its base: the rebuild gives other outputs; nothing "
            "was saved. Were modules changed other than by secateur?"
        )


def _plain(value: object) -> object:
    """As JSON: dataclasses, tuples, paths and numpy numbers become plain; NaN becomes null."""

    def fallback(item: object) -> object:
        return item.item() if hasattr(item, "item") else str(item)

    return to_jsonable_python(value, fallback=fallback, inf_nan_mode="null")


def _json(spec: Spec) -> str:
    return json.dumps(spec.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory, as safetensors requires."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its place when all went well, and else vanishes."""
    unfinished = out.with_name(f".{out.name}.unfinished-{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        yield unfinished
        _take_place(unfinished, out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot save to {out}: {_reason(error)}; nothing was written, and what was there is "
            "unchanged."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_place(unfinished: Path, out: Path) -> None:
    if not out.exists():
        os.rename(unfinished, out)
        return
    _refuse_foreign(out)
    old = out.with_name(f".{out.name}.old-{secrets.token_hex(4)}")
    os.rename(out, old)
    try:
        os.rename(unfinished, out)
    except BaseException:
        os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    if not any(out.iterdir()):
        return
    try:
        read_spec(out)
    except UserError as error:
        raise UserError(
            f"{out} exists and was not written by secateur; choose another output directory, or "
            "remove it yourself."
        ) from error


def _reason(error: Exception) -> str:
    """Why the system refused, in words; safetensors reports the number in its text only."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number == errno.ENOSPC:
        return "the disk is full"
    return str(error).rstrip(".") if number is None else os.strerror(number).lower()
