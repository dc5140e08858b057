"""Write a result as one directory that loads tomorrow: weights, spec, card and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.errors import UserError
from secateur.models.family import read
from secateur.report import render
from secateur.storage.base import Base, build
from secateur.storage.identify import base_of, provenance_of
from secateur.storage.save import check_out
from secateur.storage.save import save as write
from secateur.verbs.result import PROVENANCE, Result, environment


def save(model: nn.Module, out: str | Path, *, overwrite: bool = False) -> str | None:
    """Save a model as a directory that `secateur.load` opens: dense or pruned, trained or not.

    So a pruned model is kept that was trained further in a loop of one's own, also with another
    head (`reset_classifier`) or image size (`set_input_size`). What is known of how it came about,
    and of the dense model, is kept, so that `secateur.heal` can go on from it. A model saved in
    `out` is replaced only with `overwrite`, and returned in words; files beside it stay. Raises
    UserError, with nothing written, for models that cannot be rebuilt, weights that are not finite,
    and where `out` cannot be written.
    """
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

    `base` is what the dense model can be rebuilt from, found out unless given; `more` is added to
    the provenance, `files` are further files; `shown` is the record of the report where it is
    more than the result's. Returns in words the model that was replaced, which
    needs `overwrite`. UserError when the model cannot be rebuilt, and where `out` cannot be
    written.
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
    """What was measured, dense beside pruned, as the card and the spec show it."""
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
