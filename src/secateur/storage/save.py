"""Write a pruned model: spec.json, model.safetensors and README.md, whole or not at all."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.devices import plain_torch
from secateur.errors import UserError
from secateur.models.derived.tokens.merge import merges_of
from secateur.models.derived.tokens.tail import tail_of
from secateur.models.family import read
from secateur.models.norms import held_norms, uncentred_norms
from secateur.storage.base import Base, build_like
from secateur.storage.card import card
from secateur.storage.directories.existing import (
    MODEL_FILES,
    clear,
    described,
    mend_model,
    refuse_replacing,
    require_place,
)
from secateur.storage.directories.places import names_of_places, without_places
from secateur.storage.fingerprint import SEED, agree, probe, tolerance
from secateur.storage.identify import resized_like
from secateur.storage.saved import complete_, sha256
from secateur.storage.shapes import added_biases, shapes_of, widths_of
from secateur.storage.spec import (
    CARD,
    SPEC,
    WEIGHTS,
    BaseSpec,
    Spec,
    present_versions,
    read_spec,
    sealed,
)
from secateur.storage.weights import common_dtype, refuse_not_finite
from secateur.whole import reason_of, replacing

OTHER_DEVICE = 0.02
"""Largest difference between the CPU and another device, as a share of the largest logit."""


def check_out(out: str | Path, *, overwrite: bool = False) -> str | None:
    """Refuse, before any long work, an output directory that could not be written.

    Free names and empty directories are allowed; with `overwrite` also directories with a model
    saved by secateur, which is returned in words. Other files beside that model stay. Completes
    and removes what killed runs left there, and creates nothing. Raises UserError for all others,
    and without write permission.
    """
    out = Path(out)
    mend_model(out)
    require_place(out)
    clear(out)
    if not out.is_dir() or not any(out.iterdir()):
        return None
    try:
        what = described(out)
    except UserError as error:
        raise UserError(
            f"{out} exists and was not written by secateur; choose another output directory, or "
            "remove it yourself."
        ) from error
    if not overwrite:
        raise refuse_replacing(out, what)
    return what


@plain_torch()
def save(
    model: nn.Module,
    out: str | Path,
    *,
    base: Base,
    provenance: Mapping[str, object],
    results: Mapping[str, object],
    extra_files: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
) -> str | None:
    """Write `model`, pruned from `base`, into the directory `out`, atomically.

    The files are written to a hidden directory, the model is rebuilt from them and must give the
    outputs of `model`; only then they take their places in `out`. A model saved there is replaced
    only with `overwrite`, and returned in words; files of others beside it stay. `provenance` and
    `results` are made plain JSON, and of the paths in them the last name is kept; `extra_files`
    maps further file names, such as report.html, to their contents. Raises UserError, leaving all
    as it was, when the directory cannot be written, the disk is full, weights are not finite, or
    the rebuild differs.
    """
    out = Path(out)
    replaced = check_out(out, overwrite=overwrite)
    known: dict[str, str] = {}
    provenance = names_of_places({"": provenance}, known)[""]
    results = names_of_places({"": results}, known)[""]
    extra = {name: without_places(text, known) for name, text in (extra_files or {}).items()}
    for name in extra:
        if Path(name).name != name or name in ("", "..", SPEC, WEIGHTS, CARD):
            raise UserError(f"'{name}' is no name for a further file of a saved model.")
    tensors = _separate(model.state_dict())
    refuse_not_finite(tensors, "nothing was saved")
    out = out.resolve()
    with _whole(out, extra) as folder:
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
    return replaced


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
    again = resized_like(model, base)
    whole = build_like(base, model.state_dict().keys())
    dense = read(whole)
    shapes, widths = shapes_of(model, dense), widths_of(model, dense)
    stand_ins = [layer.id for layer in read(model).stand_ins]
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
            "merges": merges_of(model),
            "exact_tail": tail_of(model) is not None,
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
    return json.dumps(sealed(spec), indent=2, ensure_ascii=False) + "\n"


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
def _whole(out: Path, extra: Collection[str]) -> Iterator[Path]:
    """A directory whose files take their places in `out` when all went well, and else vanish."""
    try:
        with replacing(out, MODEL_FILES.union(extra)) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot save to {out}: {reason_of(error)}; nothing was written, and what was there is "
            "unchanged."
        ) from error
