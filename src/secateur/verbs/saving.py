"""Write a result as one directory: weights, spec, card and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.devices import plain_torch
from secateur.errors import UserError
from secateur.models.family import read
from secateur.report import render
from secateur.storage.base import Base, build
from secateur.storage.directories.plain import save_plain
from secateur.storage.identify import base_of, provenance_of
from secateur.storage.save import check_out
from secateur.storage.save import save as write
from secateur.verbs.result import PROVENANCE, Result, environment


@plain_torch()
def save(
    model: nn.Module, out: str | Path, *, overwrite: bool = False, plain: bool = False
) -> str | None:
    """Save a model as a directory that `secateur.load` opens: dense or pruned, trained or not.

    The model may have been trained in a loop of one's own, and may have another head
    (`reset_classifier`) or image size (`set_input_size`). Its provenance and its dense original
    are saved with it, so that `secateur.heal` can continue from it. A model saved in `out` is
    replaced only with `overwrite`; the returned sentence describes it. Other files in `out` remain.
    With `plain` a directory of the model's own library is written instead, which opens without
    secateur, where all layers have one shape that the library knows: for `from_pretrained` of
    transformers, or `timm.create_model("local-dir:…")`; `out` must then be new or empty.
    Raises UserError, with nothing written, for models that cannot be rebuilt, weights that are not
    finite, and a place that cannot be written.
    """
    if plain:
        save_plain(model, out)
        return None
    check_out(out, overwrite=overwrite)
    base = base_of(model)
    kept, dense = (read(each).cost() for each in (model, build(base)))
    return write(
        model,
        out,
        base=base,
        provenance={**provenance_of(model), "saved": {"environment": environment()}},
        results={
            "macs": {"dense": dense.macs, "pruned": kept.macs},
            "params": {"dense": dense.params, "pruned": kept.params},
        },
        overwrite=overwrite,
    )


def save_result(
    result: Result,
    out: Path,
    *,
    base: Base | None = None,
    more: Mapping[str, object] | None = None,
    files: Mapping[str, str] | None = None,
    shown: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> str | None:
    """Save the pruned model and its report in `out`, whole or not at all.

    `base` is the named dense model, by default that of the model; `more` is added to the
    provenance, `files` are further files; `shown` is the record of the report where it differs
    from that of the result. The returned sentence describes the model that was replaced, which
    requires `overwrite`. UserError when the model cannot be rebuilt or `out` cannot be written.
    """
    known = base or result.base or base_of(result.model)
    if isinstance(known, str):
        raise UserError(known)
    record = result.record()
    return write(
        result.model,
        out,
        base=known,
        provenance={key: record[key] for key in PROVENANCE}
        | {"environment": record["environment"], "command": result.command, **(more or {})},
        results=_results(record),
        extra_files={"report.html": render(shown or record), **(files or {})},
        overwrite=overwrite,
    )


def _results(record: Mapping[str, Any]) -> dict[str, object]:
    """The measurements, dense beside pruned, for the card and the spec."""
    found = {key: record[key] for key in ("macs", "params", "predicted_loss")}
    dense, pruned = record["accuracy"]["dense"], record["accuracy"]["pruned"]
    if dense is not None and pruned is not None:
        for key in ("top1", "top5", "stderr"):
            found[key] = {"dense": dense[key], "pruned": pruned[key]}
        compared = [key for key in ("agreement", "kl", "squared_error") if key in pruned]
        found |= {key: pruned[key] for key in compared} | {"images": pruned["n"]}
    rows = record["latency"]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        name = f"ms, {one['runtime']}, batch {one['batch_size']}, {one['threads']} threads"
        found[name] = {"dense": one["median_ms"], "pruned": other["median_ms"]}
    return found | {"seconds": sum(record["seconds"].values())}
