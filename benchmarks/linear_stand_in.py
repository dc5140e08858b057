"""What stands in for dropped layers: nothing, their mean, an affine fold, a linear layer.

`python benchmarks/linear_stand_in.py` drops attention layers and MLPs by the cosine of the stream
before and after them, and a window of blocks by the cosine of its ends, with each stand-in, at
equal numbers of layers; attention layers also by canonical correlations as NBL does. Then it prunes
to budgets of MACs, where linear layers have to be paid for by dropping more.
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
from torch import nn

from secateur.allocation.budget import parse_budget
from secateur.allocation.candidates import Limits, block_candidates
from secateur.allocation.quota import quota, units_of
from secateur.allocation.types import Plan
from secateur.criteria import criteria
from secateur.criteria.ask import ask
from secateur.data.batches import as_batches
from secateur.methods.layer_search.window import best_window
from secateur.models.family import read
from secateur.models.host import host_of
from secateur.models.types import Shapes
from secateur.statistics import Statistics, observe
from secateur.statistics.anchors import anchor_moments
from secateur.statistics.gaps import gap_moments
from secateur.surgery.cut import cut_
from secateur.surgery.replace import Replacement, gaps_of, runs_of
from secateur.verbs.prune import prune

NAMES = {"vit_tiny": "ViT-Tiny", "digits": "The bundled digits model"}
REPLACEMENTS: tuple[Replacement, ...] = ("nothing", "mean", "affine", "linear")
DROPS = ("3 attention", "6 attention", "3 mlp", "2 blocks")
BUDGETS = ("90% macs", "80% macs")
NEEDS = ("branch_similarity", "update_mean", "window_similarity", "stream_moments")


def main() -> None:
    given = parser("Stand-ins for dropped layers side by side.")
    given.add_argument("--model", choices=tuple(NAMES), default="vit_tiny")
    given.set_defaults(images=128, limit_eval=200)
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    store = Store(f"linear_stand_in_{args.model}", args)
    bench = Bench(args) if args.model == "vit_tiny" else DigitsBench(args)
    dense = store.run(("dense",), lambda: _scored(bench, bench.model))
    known: list[Statistics] = []

    def statistics() -> Statistics:
        if not known:
            known.append(observe(bench.model, as_batches(bench.calibration), NEEDS))
        return known[0]

    rows: dict[tuple[str, str], Row] = {}
    for drop in DROPS:
        for how in REPLACEMENTS:
            rows[drop, how] = store.run(
                (drop, how), lambda drop=drop, how=how: _dropped(bench, statistics(), drop, how)
            )
        if drop.endswith("attention"):
            rows[drop, "linear, by cca"] = store.run(
                (drop, "cca"),
                lambda drop=drop: _dropped(bench, statistics(), drop, "linear", "cca"),
            )
    for budget in BUDGETS:
        for how in REPLACEMENTS:
            rows[budget, how] = store.run(
                (budget, how), lambda budget=budget, how=how: _pruned(bench, budget, how)
            )
    _write(args, dense, rows)


def _dropped(
    bench: Bench, statistics: Statistics, drop: str, how: Replacement, criterion: str = "cosine"
) -> Row:
    model, batches = bench.model, as_batches(bench.calibration)
    anatomy = read(model)
    gone = _gone(bench, statistics, drop, criterion)
    shapes: Shapes = {b.id: None if b.id in gone else b.shape for b in anatomy.branches}
    anchors = {}
    if how == "affine":
        anchors = anchor_moments(model, batches, runs_of(anatomy, shapes))
    elif how == "linear":
        anchors = gap_moments(model, batches, gaps_of(anatomy, shapes))
    smaller = copy.deepcopy(model)
    cut_(smaller, Plan(shapes=shapes), statistics, "none", how, anchors)
    return _scored(bench, smaller) | {"gone": sorted(gone)}


def _gone(bench: Bench, statistics: Statistics, drop: str, criterion: str) -> set[str]:
    """The branches that go: those of the least score, or the best window of blocks."""
    count, kind = drop.split()
    anatomy = read(bench.model)
    if kind == "blocks":
        candidates = [block_candidates(block, 0.0, Limits()) for block in anatomy.blocks]
        units = units_of(anatomy, candidates)
        wanted = quota(units, parse_budget(f"drop {drop}"), None, 0.0)
        found = best_window(anatomy, statistics, criterion, units, wanted)
        return {branch for unit in found.units for branch in unit.branches}
    which, scores = criteria.get(criterion), {}
    for branch in [branch for branch in anatomy.branches if branch.kind == kind]:
        worth = ask(
            which,
            host_of(bench.model),
            "branch",
            branch.id,
            statistics,
            seed=0,
            settings=None,
        )
        scores[branch.id] = float(worth)
    return set(sorted(scores, key=scores.__getitem__)[: int(count)])


def _pruned(bench: Bench, budget: str, how: Replacement) -> Row:
    images_NCHW = torch.cat([images for images, _ in bench.calibration])
    result = prune(
        bench.model, images_NCHW, budget, preset="layer_drop", replacement=how, exact_tail=False
    )
    gone = sorted(key for key, shape in result.plan.shapes.items() if shape is None)
    return _scored(bench, result.model) | {"gone": gone}


def _scored(bench: Bench, model: nn.Module) -> Row:
    cost, whole = read(model).cost(), read(bench.model).cost()
    return {
        "macs": cost.macs / whole.macs,
        "params": cost.params / whole.params,
        **bench.scored(model),
    }


def _write(args: argparse.Namespace, dense: Row, rows: dict[tuple[str, str], Row]) -> None:
    parts = [
        "# Replacements of dropped layers",
        f"{NAMES[args.model]}, cut without training; {dense['n_calibration']} calibration images, "
        f"{dense['n_eval']} evaluation images, seed {args.seed}. Dense top-1 {dense['top1']:.1f} "
        "± "
        f"{dense['stderr']:.1f}. ± is the binomial standard error in points, KL is that from the "
        "dense model in nats, *lead* the gain in top-1 over no replacement on the same images, "
        "with its paired standard error.",
        "## The same layers",
        "Layers are chosen by the cosine of the stream before and after them, blocks as the "
        "window of the least angle between its ends. *By cca*: attention layers by canonical "
        "correlations, as in NBL.",
        _table(rows, DROPS),
        "## The same budget of MACs",
        "Attention layers and MLPs by cosine per MAC saved (preset `layer_drop`). A linear layer "
        "has a cost, so more layers must be dropped. Whole layers rarely meet a budget exactly: "
        "compare the MACs.",
        _table(rows, BUDGETS),
        f"Measured with `{command('linear_stand_in', args)} --model {args.model}`. {versions()}.",
    ]
    write_page(f"linear_stand_in_{args.model}", "\n\n".join(parts))


def _table(rows: dict[tuple[str, str], Row], wanted: tuple[str, ...]) -> str:
    lines = []
    for (what, how), row in rows.items():
        if what not in wanted:
            continue
        if row["status"] != "ok":
            lines.append([what, how, row["status"], "", "", "", "", ""])
            continue
        bare = rows[what, "nothing"]
        lead = difference(row, bare) if bare["status"] == "ok" and how != "nothing" else None
        lines.append(
            [
                what,
                how,
                str(len(row["gone"])),
                f"{100 * row['macs']:.1f}%",
                f"{100 * row['params']:.1f}%",
                f"{row['top1']:.1f} ± {row['stderr']:.1f}",
                f"{row['kl']:.3f}",
                "" if lead is None else f"{lead[0]:+.1f} ± {lead[1]:.1f}",
            ]
        )
    head = ["dropped or kept", "replacement", "layers dropped", "MACs", "parameters", "top-1", "KL"]
    return table([*head, "lead"], lines)


if __name__ == "__main__":
    main()
