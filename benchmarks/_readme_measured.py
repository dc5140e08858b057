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
    lines = ["| model and images | method | dense | after |", "| --- | --- | --- | --- |"]
    dense = found("training_free", r"Dense: \*\*([\d.]+ ± [\d.]+)\*\*")
    for budget in ("80% macs", "60% macs"):
        shown = rows("training_free", free)
        ours = shown["spectral, knapsack"][budget]
        others = {name: row[budget] for name, row in shown.items() if "spectral" not in name}
        best = max(others, key=lambda name: float(others[name].split()[0]))
        done = f"`prune` to {budget}, [no training](docs/results/training_free.md)"
        lines.append(f"| {images} | {done} | {dense} % | **{ours} %** ({best}: {others[best]} %) |")
    for page, part, method, trained in (
        (THIRTY, SEVENTY, "one-shot spectral", "30 epochs"),
        (STAGES, NINETY, "spectral in 3 stages", "36 epochs in three stages"),
    ):
        before = found(page, r"\*\*([\d.]+) %\*\* top-1")
        after = rows(page, f"## {part}")[method]["top-1, %"]
        done = f"`prune` and `heal`: {part}, [{trained}](docs/results/{page}.md)"
        lines.append(f"| {cifar} | {done} | {before} % | **{after} %** |")
    for batch in ("1", "32"):
        time = rows("foundation", "## Latency", batch=batch)["pruned"]["time, %"]
        done = f"half the MACs, [eager, one thread, batch {batch}](docs/results/foundation.md)"
        lines.append(f"| ViT-Tiny, time | {done} | 100 % | **{time} %** |")
    return "\n".join(lines)


def found(page: str, pattern: str) -> str:
    """What the group of a pattern holds on a page."""
    match = re.search(pattern, _text(page))
    if match is None:
        raise UserError(f"docs/results/{page}.md holds nothing like {pattern}.")
    return match.group(1)


def rows(page: str, part: str, **also: str) -> dict[str, dict[str, str]]:
    """The first table under a heading: by the first cell, rows (that have `also`) by column."""
    _, _, rest = _text(page).partition(f"{part}\n")
    lines = [line for line in rest.split("\n## ")[0].splitlines() if line.startswith("|")]
    if len(lines) < 3:
        raise UserError(f"docs/results/{page}.md has no table under '{part}'.")
    head, _, *cells = ([each.strip() for each in line.strip("|").split("|")] for line in lines)
    named = (dict(zip(head, values, strict=True)) for values in cells)
    return {row[head[0]]: row for row in named if also.items() <= row.items()}


def _text(page: str) -> str:
    return (RESULTS / f"{page}.md").read_text(encoding="utf-8")
