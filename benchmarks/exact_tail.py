"""What is the exact class-token tail worth at equal executed MACs?

`python benchmarks/exact_tail.py` prunes ViT-Tiny with the tail counted and without it, and writes
docs/results/exact_tail.md; with `--report` it only writes the page from what was measured.
"""

import argparse
from functools import partial

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

from secateur.allocation.budget import CostBudget, parse_budget
from secateur.allocation.target import counted_target
from secateur.data.batches import as_batches
from secateur.measurement.counting import counted
from secateur.methods.by_preset import method_of
from secateur.methods.checked import check
from secateur.methods.images import Images
from secateur.methods.method import Job, Prepared
from secateur.methods.request import PruneRequest
from secateur.methods.tail import with_tail
from secateur.methods.task import planned, resolve
from secateur.models.family import read
from secateur.models.host import host_of

PRESETS = ("energy", "spectral")
BUDGETS = ("80% macs", "70% macs", "60% macs")
WAYS = {"without": False, "with": True}


def main() -> None:
    args = parser("Pruning with and without the exact class-token tail.").parse_args()
    store, bench = Store("exact_tail", args), Bench(args)
    prepared: dict[str, Prepared] = {}
    for preset in () if args.report else PRESETS:
        for budget in BUDGETS:
            for way in WAYS:
                store.run(
                    (preset, budget, way), partial(_cut, bench, prepared, preset, budget, way)
                )
    write_report(store, args)


def _cut(bench: Bench, kept: dict[str, Prepared], preset: str, budget: str, way: str) -> Row:
    """Plan and cut; the look at the images is the same for all cells of a preset."""
    request = PruneRequest(
        budget, preset=preset, effort="quick", seed=bench.seed, exact_tail=WAYS[way]
    )
    host = host_of(bench.model)
    task = resolve(check(request), host.anatomy)
    images = Images(batches=as_batches(bench.calibration))
    job = Job(bench.model, host.family, planned(host, task).anatomy, task=task, images=images)
    method, parsed = method_of(task), parse_budget(budget)
    assert isinstance(parsed, CostBudget)
    if preset not in kept:
        kept[preset] = method.prepare(job)
    target = counted_target(job.anatomy, task.demand, parsed)
    plan = method.plan(job, kept[preset], target)
    smaller = with_tail(job, method.cut(job, kept[preset], plan))
    size = read(smaller).input_size
    share = counted(smaller, size).macs / counted(bench.model, size).macs
    last = [str(plan.shapes[branch.id]) for branch in job.anatomy.branches[-2:]]
    return {"macs": share, "last": last, **bench.scored(smaller)}


def write_report(store: Store, args: argparse.Namespace) -> None:
    """Write docs/results/exact_tail.md from what there is."""
    lines = []
    for preset in PRESETS:
        for budget in BUDGETS:
            off, on = (store.get(preset, budget, way) for way in WAYS)
            if off is None or on is None or "correct" not in off or "correct" not in on:
                continue
            gain, error = difference(on, off)
            shares = f"{100 * off['macs']:.1f} / {100 * on['macs']:.1f} %"
            better = f"{gain:+.1f} ± {error:.1f}"
            lines.append([preset, budget, shares, top1(off), top1(on), better])
    head = ["preset", "budget", "executed MACs", "top-1 without", "top-1 with", "difference"]
    parts = [
        "# The exact class-token tail in planning",
        "The head of a ViT that pools the class token reads no other token of the last block. With "
        "the tail, the last block computes queries, projection and MLP for that token alone "
        "([how](../architecture.md#the-exact-tail)). It changes no output and takes 8.1 % of the "
        "MACs of ViT-Tiny/16 by itself; a planner that counts it also leaves the last block whole "
        "and cuts elsewhere. Top-1 in % on "
        f"{args.limit_eval or 'all 650'} validation images (dense: 82.8 %), "
        f"{args.images} calibration images, `spectral` at quick effort; budgets and executed MACs "
        "are shares of the dense model as it is written, counted in a forward pass; differences "
        "are paired, with one standard error.",
        table(head, lines),
        "## Reproduce",
        f"```\n{command('exact_tail', args)}\n```",
        f"{versions()}.",
    ]
    write_page("exact_tail", "\n\n".join(parts))


if __name__ == "__main__":
    main()
