"""SNP's own question: what is lost when half the units of each kind go, and what maps remain.

`python benchmarks/snp_comparison.py` measures what is missing, draws and writes the page; with
`--report` it only draws and writes. `--only snp,corp` and `--budgets '50% qk'` choose cells.
"""

import argparse
import copy
from collections.abc import Iterator
from functools import cache

from _common import HERE, INPUT, Bench, Row, Store, parser
from _snp_comparison_maps import FIGURE, PRESERVED, attention_maps, preservation
from _snp_comparison_page import write_report
from torch import nn

import secateur
from secateur.data.batches import as_batches
from secateur.healing.budget import parse_polish
from secateur.healing.polish import polish_
from secateur.measuring.accuracy import predict, summarize
from secateur.measuring.counting import counted
from secateur.presets import preset_names

BUDGETS = ("50% qk", "50% vo", "50% hidden", "50% qk, 50% vo, 50% hidden")
METHODS = (
    "magnitude",
    "geometric_median",
    "snp",
    "snp_magnitude",
    "corp",
    "corp_symmetric",
    "spectral",
)
SHOWN = ("magnitude", "geometric_median", "snp", "snp_magnitude", "corp", "spectral")
"""Whose attention maps are compared."""


def main() -> None:
    given = parser("SNP against other ways of choosing dims and neurons.")
    given.set_defaults(images=256)
    given.add_argument("--only", help="methods, with commas")
    given.add_argument("--budgets", help="budgets, with ; between")
    given.add_argument("--no-maps", dest="maps", action="store_false", help="tables only")
    given.add_argument("--polish", type=int, default=30, help="steps; 0 leaves the training out")
    given.add_argument("--polish-budgets", help="those that are polished too (default: all)")
    args = given.parse_args()
    bench, store = Bench(args), Store("snp_comparison", args)
    if not args.report:
        for method, budget in cells(args):
            measure(bench, store, method, budget, args)
        if args.maps:
            compare_maps(bench, store, args)
    # Read again: another process may have measured other cells meanwhile.
    store = Store("snp_comparison", args)
    if args.report or not (args.only or args.budgets):
        dense = store.run(("dense",), lambda: {**bench.dense, **bench.setting()})
        write_report(store, dense, args, METHODS, BUDGETS)


def cells(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Methods and budgets asked for."""
    only = METHODS if args.only is None else [name.strip() for name in args.only.split(",")]
    budgets = BUDGETS if args.budgets is None else [b.strip() for b in args.budgets.split(";")]
    for method in only:
        for budget in budgets:
            yield method, budget


def measure(bench: Bench, store: Store, method: str, budget: str, args: argparse.Namespace) -> None:
    """Accuracy of a pruned model as it was cut, and after a short distillation of the same."""
    about: Row = {"method": method, "budget": budget}

    @cache
    def cut() -> nn.Module:
        return pruned(bench, method, budget)

    store.run((method, budget), lambda: scores(bench, cut()), **about)
    wanted = args.polish_budgets
    chosen = wanted is None or budget in [b.strip() for b in wanted.split(";")]
    if args.polish and chosen:
        steps = f"{args.polish} steps"
        store.run((method, budget, steps), lambda: polished(bench, cut(), steps), **about)


def pruned(bench: Bench, method: str, budget: str) -> nn.Module:
    """The model of one cell: every layer keeps the same share."""
    preset = method if method in preset_names() else str(HERE / f"{method}.yaml")
    return secateur.prune(
        bench.model, bench.calibration, budget, preset=preset, seed=bench.seed
    ).model


def polished(bench: Bench, model: nn.Module, steps: str) -> Row:
    """Scores after so many steps of distillation from the same calibration images."""
    student = copy.deepcopy(model)
    images = as_batches(bench.calibration, 32)
    report = polish_(student, bench.model, images, parse_polish(steps), bench.seed)
    return {
        **scores(bench, student),
        "kl_before": report.kl_before,
        "kl_after": report.kl_after,
        "best_step": report.best_step,
    }


def scores(bench: Bench, model: nn.Module) -> Row:
    """Top-1 and divergence from the dense model on the validation images, and costs."""
    found = predict(model, bench.validation, reference=bench.told())
    row = summarize(found)
    cost, dense = counted(model, INPUT), counted(bench.model, INPUT)
    return {
        "top1": row.top1,
        "stderr": row.stderr,
        "agreement": row.agreement,
        "kl": row.kl,
        "macs": cost.macs / dense.macs,
        "params": cost.params / dense.params,
        **bench.setting(),
    }


def compare_maps(bench: Bench, store: Store, args: argparse.Namespace) -> None:
    """How far attention moved, per layer and head, and maps of single images as a picture."""
    only = None if args.only is None else args.only.split(",")
    methods = [m for m in SHOWN if only is None or m in only]
    for budget in PRESERVED:
        for method in methods:

            def compare(method: str = method, budget: str = budget) -> Row:
                model = pruned(bench, method, budget)
                return {
                    **preservation(bench.model, model, bench.validation),
                    "maps": attention_maps(model, bench.validation) if budget == FIGURE else [],
                }

            store.run(("maps", method, budget), compare, method=method, budget=budget)
    store.run(("maps", "dense"), lambda: {"maps": attention_maps(bench.model, bench.validation)})


if __name__ == "__main__":
    main()
