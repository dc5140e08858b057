"""All training-free methods on one model, one set of images, one table.

`python benchmarks/training_free.py` measures what is missing and writes the page;
with `--report` it only writes the page from what was measured.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from _common import Bench, Row, Store, parser
from _training_free_page import write_report
from torch import nn

import secateur
from secateur.allocation.budget import CostBudget, parse_budget
from secateur.allocation.target import check_reachable, counted_target
from secateur.data.batches import as_batches
from secateur.methods.by_preset import method_of
from secateur.methods.checked import check
from secateur.methods.images import Images
from secateur.methods.method import Job, Prepared
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.models.family import family_of

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
        name=f"torch-pruning inner {'global' if everywhere else 'local'}",
        preset=None,
        changes={"embed": False, "everywhere": everywhere},
    )
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
    for wanted, methods in ((COSTS, (*OURS, *OTHERS, *PEERS)), (SHAPES, FLOORS)):
        for method in methods:
            for budget in wanted:
                named = only is None or {method.name, method.name.split()[0]} & only
                if named and (budgets is None or budget in budgets):
                    yield method, budget


def run(bench: Bench, store: Store, method: Method, budget: str) -> None:
    """Measure a cell; where the method's own groups cannot get there, others beside it."""
    row = _cell(bench, store, method, budget)
    if row["status"] == "unreachable" and method.preset is not None:
        wider = replace(
            method,
            name=f"{method.name} (qk, vo, hidden)",
            changes={**method.changes, "groups": INNER},
        )
        _cell(bench, store, wider, budget)


def _cell(bench: Bench, store: Store, method: Method, budget: str) -> Row:
    about: Row = {"method": method.name, "preset": method.preset, "budget": budget}

    def make() -> Row:
        if method.preset is None:
            return bench.measure(_peer(bench, method, budget))
        if budget in SHAPES:
            return bench.measure(_alone(bench, method, budget))
        started = _started(bench, method, budget)
        return bench.measure(lambda: started.cut(budget), begun=started.seconds)

    return store.run((method.name, budget), make, **about)


def _alone(bench: Bench, method: Method, budget: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        result = secateur.prune(
            bench.model,
            bench.calibration,
            budget,
            preset=str(method.preset),
            seed=bench.seed,
            exact_tail=False,
            **method.changes,  # type: ignore[arg-type]
        )
        return result.model

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A method after its look at the images, which serves all budgets, and how long that took."""

    job: Job
    prepared: Prepared
    seconds: float

    def cut(self, budget: str) -> nn.Module:
        """The model within a budget in MACs."""
        parsed = parse_budget(budget)
        assert isinstance(parsed, CostBudget)
        job, method = self.job, method_of(self.job.task)
        target = counted_target(job.anatomy, job.task.demand, parsed)
        return method.cut(job, self.prepared, method.plan(job, self.prepared, target))


_kept: dict[str, Started] = {}


def _started(bench: Bench, method: Method, budget: str) -> Started:
    """What the method prepares; `budget` is only checked here. The last one is kept."""
    family = family_of(bench.model)
    anatomy = family.read(bench.model)
    request = PruneRequest(
        budget,
        preset=str(method.preset),
        seed=bench.seed,
        exact_tail=False,
        **method.changes,  # type: ignore[arg-type]
    )
    task = resolve(check(request), anatomy)
    check_reachable(anatomy, task.demand)
    if method.name not in _kept:
        begin = time.process_time()
        images = Images(batches=as_batches(bench.calibration))
        job = Job(
            model=bench.model,
            family=family,
            anatomy=anatomy,
            task=task,
            images=images,
        )
        prepared = method_of(task).prepare(job)
        _kept.clear()
        _kept[method.name] = Started(
            job=job, prepared=prepared, seconds=time.process_time() - begin
        )
    return _kept[method.name]


def _peer(bench: Bench, method: Method, budget: str) -> Callable[[], nn.Module]:
    from _torch_pruning_peer import prune_peer

    share = float(budget.split("%")[0]) / 100
    embed, everywhere = bool(method.changes["embed"]), bool(method.changes["everywhere"])
    return lambda: prune_peer(
        bench.model, bench.calibration, share, embed=embed, everywhere=everywhere
    )


if __name__ == "__main__":
    main()
