"""The page of benchmarks/snp_comparison.py: tables, the plot of what was preserved, the maps."""

import argparse
from collections.abc import Callable

import torch
from _common import HERE, Row, Store, command, table, top1, versions, write_page
from _snp_comparison_maps import IMAGES, LAYER, PRESERVED, draw_maps, draw_preservation

PICTURES = HERE.parent / "docs" / "images"
CAPTION = {
    "magnitude": "magnitude (l2)",
    "geometric_median": "geometric median",
    "snp": "SNP",
    "snp_centred": "SNP, keys centred",
    "snp_magnitude": "SNP, magnitude-aware",
    "corp": "CORP",
    "corp_symmetric": "CORP, symmetrised",
    "spectral": "spectral",
}
PICTURED = ("magnitude", "snp", "snp_magnitude", "corp", "spectral")
"""Whose maps are drawn; those of the geometric median look like those of magnitude."""


def write_report(
    store: Store,
    dense: Row,
    args: argparse.Namespace,
    methods: tuple[str, ...],
    budgets: tuple[str, ...],
) -> None:
    """Write docs/results/snp_comparison.md and its pictures from the rows measured with `args`."""
    steps = f"{args.polish} steps"
    known = [m for m in methods if any(store.get(m, budget) for budget in budgets)]
    trained = [b for b in budgets if any(store.get(m, b, steps) for m in known)]
    head = ("method", *(f"{budget}" for budget in budgets))
    parts = [
        "# SNP and others: half the units of each kind",
        f"ViT-Tiny/16 at 224 px. Every layer keeps the given share; {args.images} calibration "
        f"images, seed {args.seed}. Top-1 in percent ± binomial standard error on {dense['n']} "
        f"ImageNet validation images (dense: **{top1({'status': 'ok', **dense})}**), all methods "
        "on the same images. These images are an easy selection, so only differences are "
        "meaningful.",
        "## Without training",
        table(head, [_line(store, m, budgets, top1) for m in known]),
        "KL(dense ‖ pruned) of the outputs, in nats:",
        table(head, [_line(store, m, budgets, _kl) for m in known]),
    ]
    if trained:
        parts += [
            f"## After {args.polish} steps of distillation from the same images",
            f"The [polish](../methods/polish.md), without labels, {steps} of {args.polish_batch} "
            "images, on the "
            "same calibration images; the state with the least divergence on held-out ones is "
            "kept, possibly the untrained one. Top-1, then KL in nats.",
            table(
                ("method", *trained),
                [_line(store, m, trained, top1, steps) for m in known],
            ),
            table(
                ("method", *trained),
                [_line(store, m, trained, _kl, steps) for m in known],
            ),
        ]
    parts += _preserved(store, methods)
    parts += _maps(store)
    polish = (
        f"--polish {args.polish} --polish-batch {args.polish_batch}" if trained else "--polish 0"
    )
    parts += [
        "## How this was measured",
        f"`{command('snp_comparison', args)} {polish}`; {versions()}. What says so was not run.",
    ]
    write_page("snp_comparison", "\n\n".join(parts))


def _line(
    store: Store,
    method: str,
    budgets: "tuple[str, ...] | list[str]",
    cell: Callable[[Row | None], str],
    *more: str,
) -> tuple[str, ...]:
    return (CAPTION[method], *(cell(store.get(method, budget, *more)) for budget in budgets))


def _kl(row: Row | None) -> str:
    return top1(row) if row is None or row["status"] != "ok" else f"{row['kl']:.3f}"


def _preserved(store: Store, methods: tuple[str, ...]) -> list[str]:
    parts: list[str] = []
    for budget in PRESERVED:
        rows = {m: row for m in methods if (row := store.get("maps", m, budget))}
        rows = {m: row for m, row in rows.items() if row["status"] == "ok"}
        if not rows:
            continue
        name = f"snp_attention_{budget.split('%')[0]}.png"
        draw_preservation({CAPTION[m]: row for m, row in rows.items()}, PICTURES / name)
        lines = [
            (CAPTION[m], f"{_mean(row, 'relative_error'):.3f}", f"{_mean(row, 'row_kl'):.4f}")
            for m, row in rows.items()
        ]
        parts += [
            f"## Attention scores with {budget} kept, per layer and head",
            f"![Divergence of attention per block](../images/{name})",
            "Lines are means over the heads, dots are heads. Both models run on the same "
            f"{IMAGES} "
            "validation images without correction, so that errors of earlier blocks are included. "
            "Scores are centred over the keys of a row, since the softmax is invariant to a "
            "common shift. "
            "Means over all layers and heads:",
            table(("method", "relative error of the scores", "KL of softmax rows, nats"), lines),
        ]
    return parts


def _mean(row: Row, key: str) -> float:
    return float(torch.tensor(row[key]).mean())


def _maps(store: Store) -> list[str]:
    dense = store.get("pictures", "dense")
    if dense is None or dense["status"] != "ok":
        return []
    parts: list[str] = []
    for budget in PRESERVED:
        models = [("dense", dense["maps"])]
        for method in PICTURED:
            row = store.get("pictures", method, budget)
            if row is not None and row["status"] == "ok":
                models.append((CAPTION[method], row["maps"]))
        if len(models) > 1:
            name = f"snp_maps_{budget.split('%')[0]}.png"
            draw_maps(models, PICTURES / name)
            parts += [
                f"## Attention of the class token with {budget} kept",
                f"![Attention maps of four images](../images/{name})",
            ]
    if parts:
        parts.append(
            f"Block {LAYER}, mean over heads, four validation images, one per row. All maps of an "
            "image share a colour scale, which ends below the few patches of largest attention in "
            "the dense model (often the corners, independently of the image)."
        )
    return parts
