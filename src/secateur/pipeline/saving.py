"""Write a result as one directory that loads tomorrow: weights, spec, card and report."""

from pathlib import Path

from secateur.errors import UserError
from secateur.pipeline.result import Result
from secateur.report import render
from secateur.storage.base import Base, base_of
from secateur.storage.save import save

PROVENANCE = (
    "preset",
    "preset_source",
    "budget",
    "groups",
    "repair",
    "allocation",
    "seed",
    "data",
    "dense_logits",
)
RESULTS = ("macs", "params", "predicted_loss", "accuracy", "latency", "seconds")


def save_result(result: Result, out: Path, *, base: Base | None = None) -> None:
    """Save the pruned model and its report in `out`, whole or not at all.

    `base` is what the dense model can be rebuilt from, found out unless given. UserError when
    that cannot be done, and where `out` cannot be written.
    """
    known = base or result.base or base_of(result.model)
    if isinstance(known, str):
        raise UserError(known)
    record = result.record()
    save(
        result.model,
        out,
        base=known,
        provenance={key: record[key] for key in PROVENANCE}
        | {"environment": record["environment"], "command": result.command},
        results={key: record[key] for key in RESULTS},
        extra_files={"report.html": render(record)},
    )
