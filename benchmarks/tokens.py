"""What do merged tokens add to pruned weights at equal executed MACs?

`python benchmarks/tokens.py` prunes ViT-Tiny with `spectral` to several shares of its MACs, merges
tokens in each with `tome` down to every budget, and writes docs/results/tokens.md; with `--report`
it only writes the page. Which share of the weights to keep is chosen on calibration images that
neither method saw.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial

import torch
from _common import (
    Bench,
    Row,
    Store,
    command,
    difference,
    parser,
    table,
    top1,
    versions,
    write_page,
)
from torch import Tensor, nn

import secateur
from secateur.measurement.counting import counted
from secateur.models.family import read

WEIGHTS = (100, 80)
"""Percent of the MACs that pruning of weights leaves before tokens merge."""
BUDGETS = (80, 70, 60, 50, 40, 30)
HELD_OUT = 2
"""Batches of calibration images that choose the share, which `spectral` does not see."""


def main() -> None:
    args = parser("Pruning weights, then merging tokens.").parse_args()
    store, bench = Store("tokens", args), Bench(args)

    @cache
    def pruned(share: int) -> nn.Module:
        if share == 100:
            return bench.model
        budget = f"{share}% macs"
        found = secateur.prune(bench.model, fitting(bench), budget, effort="quick", seed=bench.seed)
        return found.model

    for share in () if args.report else WEIGHTS:
        if share < 100:
            store.run(("weights", str(share)), partial(_pruned, bench, pruned, share))
        for budget in BUDGETS:
            if budget < share:
                names = (str(share), str(budget))
                store.run(names, partial(_merged, bench, pruned, share, budget))
    write_report(store, args)


def fitting(bench: Bench) -> list[Tensor]:
    """The calibration images without those that choose."""
    return [images_BCHW for images_BCHW, _ in bench.calibration[:-HELD_OUT]]


def _pruned(bench: Bench, pruned: Callable[[int], nn.Module], share: int) -> Row:
    return _scored(bench, pruned(share))


def _merged(bench: Bench, pruned: Callable[[int], nn.Module], share: int, budget: int) -> Row:
    limit = f"{budget / 100 * bench.dense['macs'] / 1e6:.2f}M macs"
    found = secateur.prune(pruned(share), fitting(bench)[:1], limit, preset="tome")
    return _scored(bench, found.model)


@torch.inference_mode()
def _scored(bench: Bench, model: nn.Module) -> Row:
    """Accuracy on validation images, and divergence from the dense model on those that choose."""
    macs = counted(model, read(model).input_size).macs / bench.dense["macs"]
    parts = []
    for images_BCHW, _ in bench.calibration[-HELD_OUT:]:
        dense_BC = bench.model(images_BCHW).log_softmax(-1)
        small_BC = model.eval()(images_BCHW).log_softmax(-1)
        parts.append((dense_BC.exp() * (dense_BC - small_BC)).sum(-1))
    return {"macs": macs, "chooses": float(torch.cat(parts).mean()), **bench.scored(model)}


def write_report(store: Store, args: argparse.Namespace) -> None:
    """Write docs/results/tokens.md from what there is."""
    lines = []
    for budget in BUDGETS:
        rows = {share: store.get(str(share), str(budget)) for share in WEIGHTS}
        rows[budget] = store.get("weights", str(budget))
        found = {share: row for share, row in rows.items() if row and "correct" in row}
        if not found:
            continue
        best = min(found, key=lambda share: found[share]["chooses"])
        cells = [top1(found[share]) if share in found else "–" for share in WEIGHTS]
        cells = [f"**{c}**" if s == best else c for s, c in zip(WEIGHTS, cells, strict=True)]
        gain = "–"
        if 100 in found and best != 100:
            more, error = difference(found[best], found[100])
            gain = f"{more:+.1f} ± {error:.1f}"
        lines.append([f"{budget} %", *cells, gain])
    head = ["MACs", *(f"weights to {share} %" for share in WEIGHTS), "chosen against tokens alone"]
    parts = [
        "# Tokens and weights under one budget",
        "`spectral` prunes the weights of ViT-Tiny/16 to a share of its MACs (quick effort, with "
        "the exact class-token tail), then `tome` merges as many tokens in every block as the rest "
        "of the budget asks; nothing is trained, and nothing is fitted again after merging. The "
        "first column merges tokens alone, the published schedule. Where a column has the share of "
        "its row, nothing merges. Top-1 in % with one standard error on "
        f"{args.limit_eval or 'all 650'} validation images (dense: 82.8 %); in bold the share that "
        "is nearest to the dense model on 128 calibration images apart from the "
        f"{args.images - 128} that `spectral` saw. The last column is paired.",
        table(head, lines),
        "## Reproduce",
        f"```\n{command('tokens', args)}\n```",
        f"{versions()}.",
    ]
    write_page("tokens", "\n\n".join(parts))


if __name__ == "__main__":
    main()
