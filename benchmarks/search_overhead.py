"""What gates add to a training step: interleaved steps with and without them, one process.

`python benchmarks/search_overhead.py` writes docs/results/search_overhead.md. The model is ViT-Tiny
at 96 px with random weights, since weights do not change the time of a step.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import timm
import torch
from _common import Row, Store, parser, table, versions, write_page
from torch import Tensor, nn

from secateur.allocation.candidates import Limits
from secateur.allocation.costs import cost_function
from secateur.masks.bank import GateBank
from secateur.masks.estimator import estimators
from secateur.masks.granularity import Scope, gates_of, granularities
from secateur.masks.pricing import Pricing
from secateur.masks.strategy import SearchStrategy, WaySettings, strategies
from secateur.models.family import family_of
from secateur.training.lesson import Lesson, Moment

MOST = 1.25
"""The ratio that a search may not exceed."""


def way_for(model: nn.Module, sharing: str, way: str) -> SearchStrategy:
    """A search towards 30 % of the parameters, with scores by chance."""
    family = family_of(model)
    anatomy, which = family.read(model), granularities.get(sharing)
    limits = Limits(align={}, minimum={})
    scope = Scope(
        anatomy=anatomy,
        groups=frozenset(which.groups),
        limits=limits,
        linear=frozenset(branch.id for branch in anatomy.branches),
    )
    gates = gates_of(which, scope)
    worths = {gate.name: 2 * torch.rand(gate.rows, gate.units) - 1 for gate in gates}
    cost_of = cost_function(anatomy, "params")
    pricing = Pricing(anatomy=anatomy, cost_of=cost_of, limits=limits, limit=0.3 * cost_of({}))
    bank = GateBank(gates, estimators.get("straight_through"), worths)
    return strategies.get(way).make(bank, pricing, WaySettings())


def steps(
    model: nn.Module, way: SearchStrategy | None, batch: tuple[Tensor, Tensor], count: int
) -> Iterator[float]:
    """Seconds of processor time of each step; yields between steps."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    lesson = Lesson(images_BCHW=batch[0], labels_B=batch[1])
    for number in range(count):
        moment = Moment(step=number, share=number / count)
        start = time.process_time()
        if way is not None:
            way.before_step(moment)
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        if way is not None:
            loss = sum(way.terms(model, lesson, moment).values(), start=loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if way is not None:
            if way.optimizer is not None:
                way.optimizer.step()
                way.optimizer.zero_grad()
            way.after_step(Moment(step=number + 1, share=(number + 1) / count))
        yield time.process_time() - start


def measure(args: argparse.Namespace, sharing: str, way: str) -> Row:
    """Median ratio of neighbouring steps, the first two left out, and its quartiles."""
    torch.manual_seed(args.seed)
    build = lambda: timm.create_model(  # noqa: E731
        "vit_tiny_patch16_224", num_classes=10, img_size=args.size
    ).train()
    plain_model, gated_model = build(), build()
    batch = (torch.randn(args.batch, 3, args.size, args.size), torch.randint(10, (args.batch,)))
    search = way_for(gated_model, sharing, way)
    with search.bank.attached(gated_model):
        pairs = list(
            zip(
                steps(plain_model, None, batch, args.steps),
                steps(gated_model, search, batch, args.steps),
                strict=True,
            )
        )[2:]
    ratios = sorted(gated / plain for plain, gated in pairs)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ratio": statistics.median(ratios),
        "low": quartiles[0],
        "high": quartiles[2],
        "plain_ms": 1000 * statistics.median(plain for plain, _ in pairs),
        "gated_ms": 1000 * statistics.median(gated for _, gated in pairs),
        "n": len(pairs),
    }


def main() -> None:
    """Measure every strategy and way, then write the page."""
    given = parser("Steps with and without gates.")
    given.add_argument("--steps", type=int, default=102)
    given.add_argument("--batch", type=int, default=64)
    given.add_argument("--size", type=int, default=96)
    given.add_argument("--only", action="append", help="these strategies only, by name")
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    store = Store("search_overhead", args)
    store.suffix = f"{args.size}px/batch{args.batch}/steps{args.steps}/seed{args.seed}"
    cells = [(sharing, "projected") for sharing in granularities.names()]
    cells += [("common_count", way) for way in strategies.names() if way != "projected"]
    cells = [cell for cell in cells if not args.only or cell[0] in args.only]
    rows = []
    for cell in cells:
        row = store.run(cell, lambda cell=cell: measure(args, *cell))
        rows.append(
            (
                *cell,
                f"{row['plain_ms']:.0f}",
                f"{row['gated_ms']:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['low']:.2f} … {row['high']:.2f}",
            )
        )
    head = ("sharing", "search", "plain, ms", "with gates, ms", "ratio", "quartiles")
    write_page(
        "search_overhead",
        "\n\n".join(
            [
                "# The overhead of a search in a training step",
                f"ViT-Tiny/16 at {args.size} px, batches of {args.batch}, {args.threads} thread; "
                f"steps with and without gates in turns, {args.steps - 2} of each after two "
                "warm-up steps; medians of processor time, and the median ratio of neighbouring "
                f"steps. The limit is {MOST:g}.",
                table(head, rows),
                "A step consists of forward pass, cross-entropy, backward pass and the "
                "optimizers. The teacher's forward pass, equal with and without gates, is "
                "excluded. `projected` projects the scores eleven times in a search and "
                "`schedule` up to a hundred times, here more often per step than in a longer "
                "search. The takeover of `projected`, a pass over a few hundred images each time, "
                "is excluded too.",
                "## Reproduce\n\n```\npython benchmarks/search_overhead.py "
                f"--size {args.size} --batch {args.batch} --steps {args.steps} --threads "
                f"{args.threads}{''.join(f' --only {name}' for name in args.only or ())}\n```",
                f"{versions()}. Seed {args.seed}.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
