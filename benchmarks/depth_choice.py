"""How to choose layers to drop, and what to leave in their place, on one model.

`python benchmarks/depth_choice.py` drops 2, 4 and 6 attention layers or MLPs chosen by cosine, by
the divergence without each, and greedily by the divergence without all; and puts nothing, the
mean, a scalar or an affine map of the layer before in their place.
"""

import argparse
import copy

import torch
from _common import (
    Bench,
    DigitsBench,
    Row,
    Store,
    command,
    difference,
    parser,
    table,
    versions,
    write_page,
)

from secateur.ablation.layers import removal
from secateur.allocation.budget import parse_budget
from secateur.allocation.candidates import Limits, drop_candidates
from secateur.allocation.quota import quota, units_of
from secateur.allocation.types import Plan
from secateur.data.batches import as_batches
from secateur.methods.layer_search.greedy import greedy
from secateur.models.family import family_of
from secateur.models.host import host_of
from secateur.models.types import Shapes
from secateur.statistics import Statistics, observe
from secateur.statistics.anchors import anchor_moments
from secateur.surgery.cut import cut_
from secateur.surgery.replace import Replacement, runs_of

NAMES = {"vit_tiny": "ViT-Tiny", "digits": "The bundled digits model"}
COUNTS = (2, 4, 6)
CHOICES = ("cosine", "delta_kl", "greedy")
REPLACEMENTS: tuple[Replacement, ...] = ("nothing", "mean", "scalar", "affine")
SEARCH_IMAGES = 32


def main() -> None:
    given = parser("Choices of layers and stand-ins side by side.")
    given.add_argument("--model", choices=("vit_tiny", "digits"), default="vit_tiny")
    given.set_defaults(images=64)
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    store = Store(f"depth_choice_{args.model}", args)
    bench = Bench(args) if args.model == "vit_tiny" else DigitsBench(args)
    order = store.run(("order",), lambda: _orders(bench))
    rows: dict[tuple[str, int, str], Row] = {}
    for count in COUNTS:
        for choice in CHOICES:
            for stand_in in REPLACEMENTS if choice != "delta_kl" else ("nothing",):
                gone = order[choice][:count]
                rows[choice, count, stand_in] = store.run(
                    (choice, str(count), stand_in),
                    lambda gone=gone, how=stand_in: bench.measure(lambda: _cut(bench, gone, how)),
                    gone=gone,
                )
    _write(args, bench, rows)


def _orders(bench: Bench) -> Row:
    """The layers in the order in which each choice drops them."""
    model, batches = bench.model, as_batches(bench.calibration)
    family = family_of(model)
    anatomy = family.read(model)
    statistics = observe(model, batches, ["branch_similarity", "branch_removal"])

    def cosine(name: str) -> float:
        sums = statistics.of("branch_similarity", name)
        return float(1 - sums["cosine"] / sums["count"])

    def alone(name: str) -> float:
        return float(statistics.of("branch_removal", name)["delta_kl"])

    candidates = [
        drop_candidates(branch.id, "branch", 0.0, Limits()) for branch in anatomy.branches
    ]
    units = units_of(anatomy, candidates)
    wanted = quota(units, parse_budget(f"drop {max(COUNTS)} layers"), None, 0.0)
    search = removal(host_of(model), batches, SEARCH_IMAGES, {}, "delta_kl")
    found = greedy(search, units, wanted, per_cost=False, on_step=lambda _d, _t: None)
    names = [branch.id for branch in anatomy.branches]
    return {
        "cosine": sorted(names, key=cosine),
        "delta_kl": sorted(names, key=alone),
        "greedy": [unit.key[0] for unit in found.units],
    }


def _cut(bench: Bench, gone: list[str], stand_in: Replacement) -> torch.nn.Module:
    model, batches = bench.model, as_batches(bench.calibration)
    anatomy = family_of(model).read(model)
    shapes: Shapes = {b.id: None if b.id in gone else b.shape for b in anatomy.branches}
    statistics: Statistics | None = None
    if stand_in in ("mean", "affine"):
        statistics = observe(model, batches, ["update_mean"], only=gone)
    if stand_in == "scalar":
        statistics = observe(model, batches, ["branch_similarity"], only=gone)
    runs = runs_of(anatomy, shapes) if stand_in == "affine" else {}
    smaller = copy.deepcopy(model)
    anchors = anchor_moments(model, batches, runs)
    cut_(smaller, Plan(shapes=shapes), statistics, "none", stand_in, anchors)
    return smaller.eval()


def _write(args: argparse.Namespace, bench: Bench, rows: dict[tuple[str, int, str], Row]) -> None:
    some = next(iter(rows.values()))
    dense = bench.dense
    parts = [
        "# Choice and replacement of dropped layers",
        f"{NAMES[args.model]}, dense top-1 {dense['top1']:.1f} ± {dense['stderr']:.1f} % on "
        f"{some['n_eval']} evaluation images; {args.images} calibration images, of which the "
        f"greedy search uses {SEARCH_IMAGES}. Attention layers and MLPs compete. ± is the "
        "binomial "
        "standard error in points; differences are paired over images, with their standard error.",
        "## Choice of layers, without replacement",
        _choices(rows),
        "## Replacement",
        _stand_ins(rows),
        f"Measured with `{command('depth_choice', args)} --model {args.model}`. {versions()}.",
    ]
    write_page(f"depth_choice_{args.model}", "\n\n".join(parts))


def _choices(rows: dict[tuple[str, int, str], Row]) -> str:
    lines = []
    for count in COUNTS:
        own = [rows[choice, count, "nothing"] for choice in CHOICES]
        better = difference(own[2], own[0])
        lines.append(
            [
                str(count),
                *(f"{row['top1']:.1f} ± {row['stderr']:.1f} ({row['kl']:.2f})" for row in own),
                f"{better[0]:+.1f} ± {better[1]:.1f}",
            ]
        )
    return table(
        ["dropped", *(f"{c}: top-1 (KL)" for c in CHOICES), "greedy minus cosine, points"], lines
    )


def _stand_ins(rows: dict[tuple[str, int, str], Row]) -> str:
    lines = []
    for choice in ("cosine", "greedy"):
        for count in COUNTS:
            own = [rows[choice, count, stand_in] for stand_in in REPLACEMENTS]
            better = difference(own[3], own[0])
            lines.append(
                [
                    f"{count} by {choice}",
                    *(f"{row['top1']:.1f} ({row['kl']:.2f})" for row in own),
                    f"{better[0]:+.1f} ± {better[1]:.1f}",
                ]
            )
    return table(
        ["dropped", *(f"{s}: top-1 (KL)" for s in REPLACEMENTS), "affine minus nothing, points"],
        lines,
    )


if __name__ == "__main__":
    main()
