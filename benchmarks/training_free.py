"""All training-free methods on one model, one set of images, one table.

`python benchmarks/training_free.py` measures what is missing and writes the page;
with `--report` it only writes the page from what was measured.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from _common import Bench, Row, Store, parser
from _training_free_page import write_report
from torch import nn

import secateur
from secateur.presets import preset_names

SHAPES = ("50% qk", "25% qk", "50% vo", "50% hidden")
COSTS = ("80% macs", "70% macs", "60% macs", "50% macs")
INNER = ("qk", "vo", "hidden")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of a table: a preset with changes, or, without a preset, a peer's variant."""

    name: str
    preset: str | None
    changes: dict[str, object] = field(default_factory=dict)


FLOORS = tuple(
    Method(name=name, preset=name)
    for name in ("spectral", "corp", "snp", "energy", "magnitude", "random")
)
OURS = (
    Method(name="spectral", preset="spectral"),
    Method(name="spectral-quick", preset="spectral", changes={"effort": "quick"}),
    Method(name="spectral-uniform", preset="spectral", changes={"allocation": "uniform"}),
)
OTHERS = tuple(
    Method(name=name, preset=name)
    for name in ("energy", "corp", "snp", "vbp", "flap", "taylor", "magnitude")
)
PEERS = tuple(
    Method(
        name=f"torch-pruning {'embed' if embed else 'inner'} {'global' if everywhere else 'local'}",
        preset=None,
        changes={"embed": embed, "everywhere": everywhere},
    )
    for embed in (False, True)
    for everywhere in (False, True)
)


def main() -> None:
    given = parser("Training-free pruning methods side by side.")
    given.add_argument("--only", help="methods, with commas: spectral,magnitude,torch-pruning")
    given.add_argument("--budgets", help="budgets, with ; between: '50%% macs; 50%% qk'")
    args = given.parse_args()
    store = Store("training_free", args)
    bench = Bench(args)
    if not args.report:
        for method, budget in cells(args):
            run(bench, store, method, budget)
    if args.report or not (args.only or args.budgets):
        dense = store.run(("dense",), lambda: {**bench.dense, **bench.setting()})
        # Read again: another process may have measured other cells meanwhile.
        write_report(Store("training_free", args), dense, args)


def cells(args: argparse.Namespace) -> Iterator[tuple[Method, str]]:
    """Methods and budgets asked for, ours first."""
    only = None if args.only is None else {name.strip() for name in args.only.split(",")}
    budgets = None if args.budgets is None else {b.strip() for b in args.budgets.split(";")}
    for wanted, methods in ((SHAPES, FLOORS), (COSTS, (*OURS, *OTHERS, *PEERS))):
        for method in methods:
            for budget in wanted:
                named = only is None or {method.name, method.name.split()[0]} & only
                if named and (budgets is None or budget in budgets):
                    yield method, budget


def run(bench: Bench, store: Store, method: Method, budget: str) -> None:
    """Measure a cell; where the method's own groups cannot get there, others beside it."""
    if method.preset is not None and method.preset not in preset_names():
        print(f"{method.name} at {budget}: skipped, there is no such preset yet")
        return
    about: Row = {"method": method.name, "preset": method.preset, "budget": budget}
    maker = _peer if method.preset is None else _ours
    row = store.run(
        (method.name, budget), lambda: bench.measure(maker(bench, method, budget)), **about
    )
    if row["status"] == "unreachable" and method.preset is not None:
        wider = Method(
            name=f"{method.name} (qk, vo, hidden)",
            preset=method.preset,
            changes={**method.changes, "groups": INNER},
        )
        about["method"] = wider.name
        store.run((wider.name, budget), lambda: bench.measure(_ours(bench, wider, budget)), **about)


def _ours(bench: Bench, method: Method, budget: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        result = secateur.prune(
            bench.model,
            bench.calibration,
            budget,
            preset=str(method.preset),
            seed=bench.seed,
            **method.changes,  # type: ignore[arg-type]
        )
        return result.model

    return make


def _peer(bench: Bench, method: Method, budget: str) -> Callable[[], nn.Module]:
    from _torch_pruning_peer import prune_peer

    share = float(budget.split("%")[0]) / 100
    embed, everywhere = bool(method.changes["embed"]), bool(method.changes["everywhere"])
    return lambda: prune_peer(
        bench.model, bench.calibration, share, embed=embed, everywhere=everywhere
    )


if __name__ == "__main__":
    main()
