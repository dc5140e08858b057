"""What it costs to score query/key dims with SNP, in forward passes over the same images.

    python benchmarks/snp_cost.py [--images 64] [--rounds 12]

In every round each choice runs between two plain passes: observing the images, and the scores of
all query/key dims, values and neurons. What counts is the median over rounds of its processor time
divided by the mean of its two neighbours, which other work on the machine slows alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from _common import Bench, Store, command, parser, table, versions, write_page

from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.criteria.registry import needs_of, settings_of
from secateur.data.batches import as_batches
from secateur.models.host import host_of
from secateur.models.types import GroupName
from secateur.statistics import observe

CHOICES: dict[str, dict[str, object]] = {
    "each image": {},
    "each image, patches only": {"class_token": False},
    "all images, stacked": {"aggregate": "stacked"},
}


def main() -> None:
    """Measure what is missing and write the page."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=12)
    arguments.set_defaults(images=64)
    args = arguments.parse_args()
    bench, store = Bench(args), Store("snp_cost", args)
    rows = store.run((f"{args.rounds} rounds",), lambda: {"choices": measured(bench, args.rounds)})
    if rows["status"] == "ok":
        write_report(rows["choices"], args)


def measured(bench: Bench, rounds: int) -> dict[str, dict[str, list[float]]]:
    """For each choice, seconds of a plain pass and of scoring in every round."""
    model = bench.model
    images = torch.cat([images_BCHW for images_BCHW, _ in bench.calibration])
    found: dict[str, dict[str, list[float]]] = {
        name: {"plain": [], "scored": []} for name in CHOICES
    }
    score_all(model, images[:32], {})
    for _ in range(rounds):
        before = timed(lambda: forward(model, images))
        for name, settings in CHOICES.items():
            scored = timed(lambda settings=settings: score_all(model, images, settings))
            after = timed(lambda: forward(model, images))
            found[name]["plain"].append((before + after) / 2)
            found[name]["scored"].append(scored)
            before = after
    return found


def write_report(choices: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> None:
    """Write docs/results/snp_cost.md."""
    lines = []
    for name, times in choices.items():
        ratios = [s / p for s, p in zip(times["scored"], times["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append((name, f"**{middle:.2f}**", f"{low:.2f} to {high:.2f}"))
    parts = [
        "# The cost of scoring with SNP",
        f"ViT-Tiny/16 at 224 px, {args.images} images in batches of 32, {args.threads} thread(s). "
        "The unit is a plain forward pass over the same images. The statistics of queries and "
        "keys and the scores of all query/key dims, values and neurons of all layers take",
        table(("decomposed are the scores of", "forward passes", "middle half of rounds"), lines),
        f"Medians over {args.rounds} rounds of processor time, each relative to the plain passes "
        "just before and after it. Most of the additional cost is the eigenvalue problem of each "
        "image and head, solved in fp64, since components far from the largest would mix in "
        "fp32. Stacked scores need one per head.",
        "## How this was measured",
        f"`{command('snp_cost', args)} --rounds {args.rounds}`; {versions()}.",
    ]
    write_page("snp_cost", "\n\n".join(parts))


def timed(run: Callable[[], None]) -> float:
    """Seconds of processor time of a call, which other work on the machine hardly changes."""
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    """One plain pass."""
    for images_BCHW in images.split(32):
        model(images_BCHW)


def score_all(model: torch.nn.Module, images: torch.Tensor, settings: dict[str, object]) -> None:
    """A pass with statistics, and the scores of all query/key, value and hidden units."""
    which = criteria.get("snp")
    chosen = settings_of(which, settings)
    statistics = observe(model, as_batches(images, 32), needs_of(which, "qk", chosen))
    host = host_of(model)
    groups: tuple[GroupName, ...] = ("qk", "vo", "hidden")
    for branch in host.anatomy.branches:
        for group in [group for group in groups if group in branch.groups]:
            ask(which, host, group, branch.id, statistics, seed=0, settings=chosen)


if __name__ == "__main__":
    main()
