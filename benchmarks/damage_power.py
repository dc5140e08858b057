"""Which power of the degradations should the knapsack of the spectral preset add up?

`python benchmarks/damage_power.py` measures what is missing and writes the page; with `--report` it
only writes the page from what was measured.

Everything here is measured on calibration images: the first `--images` of them give the candidates
and are cut with, others tell the degradation. No validation image is looked at.
"""

import argparse
from functools import partial

from _common import Row, Store, command, parser, table, versions, write_page
from token_weights import JUDGED, Split, compared, divergences

from secateur.data.batches import as_batches
from secateur.methods import spectral
from secateur.methods.checked import check
from secateur.methods.images import Images
from secateur.methods.method import Job
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.models.caches import shell_of
from secateur.models.host import host_of

BUDGETS = ("80% macs", "60% macs")
POWERS = (0.7, 1.0, 1.5, 2.0, 3.0)
USED = spectral.COMPOUND


class Judge(Split):
    """Candidates are measured once for all budgets and powers."""

    _prepared: spectral.Probed | None = None

    def prepared(self) -> spectral.Probed:
        """Candidates and token weights from the images to cut with."""
        if self._prepared is None:
            host = host_of(self.model)
            task = resolve(check(PruneRequest(BUDGETS[0], seed=self.seed)), host.anatomy)
            images = Images(batches=as_batches(self.parts[0]))
            job = Job(host.model, host.family, host.anatomy, task=task, images=images)
            self._prepared = spectral.prepare(job)
        return self._prepared


def main() -> None:
    args = parser("Powers of the damages in the plan of the spectral preset.").parse_args()
    store, bench = Store("damage_power", args), Judge(args)
    if not args.report:
        for budget in BUDGETS:
            for power in POWERS:
                store.run((budget, str(power)), partial(cell, bench, budget, power))
    write_report(store, args)


def cell(bench: Judge, budget: str, power: float) -> Row:
    """Plan with one power and cut; the divergence of the outputs on the judging images."""
    model, prepared = bench.model, bench.prepared()
    host = host_of(model)
    task = resolve(check(PruneRequest(budget, seed=bench.seed)), host.anatomy)
    spectral.COMPOUND = power
    plan = spectral.plan_spectral(host.anatomy, task, prepared.candidates)
    spectral.COMPOUND = USED
    smaller = shell_of(model)
    spectral.cut_spectral_(smaller, host, plan, prepared, as_batches(bench.parts[0]))
    return divergences(bench, smaller)


def write_report(store: Store, args: argparse.Namespace) -> None:
    """Write docs/results/damage_power.md from what there is."""

    lines = [
        (
            f"{power:g}{' (used)' if power == USED else ''}",
            *(compared(store, b, power, USED) for b in BUDGETS),
        )
        for power in POWERS
    ]
    parts = [
        "# The power of the degradations in the sum",
        "The knapsack of the preset `spectral` minimises the sum of a power of the predicted "
        "degradations (docs/methods/spectral.md, section 6). KL(dense ‖ pruned) in nats ± "
        "standard error, in brackets the agreement with the dense predictions, then the paired "
        "difference to the divergence under the default power (below 0: better); "
        f"ViT-Tiny, {args.images} calibration images, {JUDGED} other calibration images for "
        "evaluation.",
        table(("power", *BUDGETS), lines),
        "## Reproduce",
        f"```\n{command('damage_power', args)}\n```",
        f"{versions()}. Seed {args.seed}.",
    ]
    write_page("damage_power", "\n\n".join(parts))


if __name__ == "__main__":
    main()
