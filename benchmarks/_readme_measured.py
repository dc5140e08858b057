"""The table of README.md with what was measured, read from the pages in docs/results."""

import re
from pathlib import Path

from secateur.errors import UserError

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
THIRTY, STAGES = "learned_masks_muon_30_epochs", "learned_masks_muon_36_epochs_mixed"
SEVENTY, NINETY = "70 % fewer parameters", "90 % fewer parameters"


def measured_table() -> str:
    """Accuracy and time before and after, each row with the page that says how to repeat it."""
    free = "## One budget over all groups"
    images = "ViT-Tiny, 650 ImageNet images"
    cifar = "ViT-Tiny at 96 px, CIFAR-10"
    lines = ["| model and images | what was done | dense | after |", "| --- | --- | --- | --- |"]
    dense = found("training_free", r"Dense: \*\*([\d.]+ ± [\d.]+)\*\*")
    for budget in ("80% macs", "60% macs"):
        ours = cell("training_free", free, "spectral, knapsack", budget)
        theirs = cell("training_free", free, "corp", budget)
        done = f"`prune` to {budget}, [no training](docs/results/training_free.md)"
        lines.append(f"| {images} | {done} | {dense} % | **{ours} %** (CORP {theirs} %) |")
    for page, part, row, done in (
        (THIRTY, SEVENTY, "one-shot spectral", f"{SEVENTY}, [30 epochs](docs/results/{THIRTY}.md)"),
        (
            STAGES,
            NINETY,
            "spectral in 3 stages",
            f"{NINETY}, [36 epochs in three stages](docs/results/{STAGES}.md)",
        ),
    ):
        before = found(page, r"\*\*([\d.]+) %\*\* top-1")
        after = cell(page, f"## {part}", row, "top-1, %")
        lines.append(f"| {cifar} | {done} | {before} % | **{after} %** |")
    for batch in ("1", "32"):
        time = cell("foundation", "## Latency", "pruned", "time, %", batch=batch)
        done = f"half the MACs, [eager, one thread, batch {batch}](docs/results/foundation.md)"
        lines.append(f"| ViT-Tiny, time | {done} | 100 % | **{time} %** |")
    return "\n".join(lines)


def found(page: str, pattern: str) -> str:
    """What the group of a pattern holds on a page."""
    match = re.search(pattern, _text(page))
    if match is None:
        raise UserError(f"docs/results/{page}.md holds nothing like {pattern}.")
    return match.group(1)


def cell(page: str, part: str, row: str, column: str, **also: str) -> str:
    """A cell of the first table under a heading, whose row begins so (and has `also`)."""
    _, heading, rest = _text(page).partition(f"{part}\n")
    lines = [line for line in rest.split("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[each.strip() for each in line.strip("|").split("|")] for line in lines]
    if heading and rows and column in rows[0]:
        for values in rows[1:]:
            named = dict(zip(rows[0], values, strict=True))
            if values[0] == row and also.items() <= named.items():
                return named[column]
    raise UserError(f"docs/results/{page}.md has no row '{row}' with '{column}' under '{part}'.")


def _text(page: str) -> str:
    return (RESULTS / f"{page}.md").read_text(encoding="utf-8")
