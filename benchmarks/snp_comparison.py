"""SNP's own question: what is lost when half the units of each kind go, and what maps remain.

`python benchmarks/snp_comparison.py` measures what is missing, draws and writes the page; with
`--report` it only draws and writes. `--only snp,corp` and `--budgets '50% qk'` choose cells.
"""

import argparse
import copy
from functools import cache

from _common import HERE, INPUT, Bench, Row, Store, parser
from _snp_comparison_maps import PRESERVED, attention_maps, preservation
from _snp_comparison_page import write_report
from torch import nn

import secateur
from secateur.data.batches import as_batches
from secateur.measurement.accuracy import predict, summarize
from secateur.measurement.counting import counted
from secateur.presets import preset_names
from secateur.training.polish import PolishSettings, polish_
from secateur.training.run_length import parse_run_length

BUDGETS = ("50% qk", "50% vo", "50% hidden", "50% qk, 50% vo, 50% hidden")
METHODS = (
    "magnitude",
    "geometric_median",
    "snp",
    "snp_centred",
    "snp_magnitude",
    "corp",
    "corp_symmetric",
    "spectral",
)
SHOWN = (
    "magnitude",
    "geometric_median",
    "snp",
    "snp_centred",
    "snp_magnitude",
    "corp",
    "spectral",
)
"""Whose attention maps are compared."""


def main() -> None:
    given = parser("SNP against other ways of choosing dims and neurons.")
    given.set_defaults(images=256)
    given.add_argument("--only", help="methods, with commas")
    given.add_argument("--budgets", help="budgets, with ; between")
    given.add_argument("--no-maps", dest="maps", action="store_false", help="tables only")
    given.add_argument("--polish", type=int, default=12, help="steps; 0 leaves the training out")
    given.add_argument("--polish-batch", type=int, default=16, help="images per step")
    given.add_argument("--polish-budgets", help="those that are polished too (default: all)")
    args = given.parse_args()
    bench, store = Bench(args), Store("snp_comparison", args)
    if not args.report:
        for method in methods_of(args):
            measure(bench, store, method, args)
        if args.maps:
            dense = lambda: {"maps": attention_maps(bench.model, bench.validation)}  # noqa: E731
            store.run(("pictures", "dense"), dense)
    # Read again: another process may have measured other cells meanwhile.
    store = Store("snp_comparison", args)
    if args.report or not (args.only or args.budgets):
        dense_row = store.run(("dense",), lambda: {**bench.dense, **bench.setting()})
        write_report(store, dense_row, args, METHODS, BUDGETS)


def methods_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Methods asked for."""
    if args.only is None:
        return METHODS
    return tuple(name.strip() for name in args.only.split(","))


def split(text: str | None, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """Budgets asked for."""
    return otherwise if text is None else tuple(b.strip() for b in text.split(";"))


def measure(bench: Bench, store: Store, method: str, args: argparse.Namespace) -> None:
    """All that is wanted of a method: as cut, its attention, after a short distillation."""

    @cache
    def cut(budget: str) -> nn.Module:
        return pruned(bench, method, budget)

    about: Row = {"method": method}
    for budget in split(args.budgets, BUDGETS):
        store.run((method, budget), lambda b=budget: scores(bench, cut(b)), **about, budget=budget)
    for budget in PRESERVED if args.maps and method in SHOWN else ():
        store.run(
            ("maps", method, budget),
            lambda b=budget: preservation(bench.model, cut(b), bench.validation),
            **about,
            budget=budget,
        )
        store.run(
            ("pictures", method, budget),
            lambda b=budget: {"maps": attention_maps(cut(b), bench.validation)},
            **about,
            budget=budget,
        )
    steps = f"{args.polish} steps"
    for budget in split(args.polish_budgets, BUDGETS) if args.polish else ():
        store.run(
            (method, budget, steps),
            lambda b=budget: polished(bench, cut(b), steps, args.polish_batch),
            **about,
            budget=budget,
        )


def pruned(bench: Bench, method: str, budget: str) -> nn.Module:
    """The model of one cell: every layer keeps the same share."""
    preset = method if method in preset_names() else str(HERE / f"{method}.yaml")
    return secateur.prune(
        bench.model, bench.calibration, budget, preset=preset, seed=bench.seed, exact_tail=False
    ).model


def polished(bench: Bench, model: nn.Module, steps: str, batch_size: int) -> Row:
    """Scores after so many steps of distillation from the same calibration images."""
    student = copy.deepcopy(model)
    images = as_batches(bench.calibration, 32)
    settings = PolishSettings(batch_size=batch_size, checks=2)
    report = polish_(
        student, bench.model, images, parse_run_length(steps), bench.seed, settings=settings
    )
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


if __name__ == "__main__":
    main()
