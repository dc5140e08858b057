"""Does it pay to weigh tokens by how much the output depends on them, and how strongly?

`python benchmarks/token_weights.py` measures what is missing and writes the page;
with `--report` it only writes the page from what was measured.

Everything here, the choice included, is measured on calibration images: the first `--images` of
them are cut with, others tell the degradation. No validation image is looked at.
"""

import argparse
import copy
from dataclasses import replace
from functools import cached_property, partial

import torch
from _common import Bench, Row, Store, command, parser, table, versions, write_page
from torch import Tensor, nn

from secateur.allocation.target import decide
from secateur.allocation.types import shapes_of
from secateur.data.batches import as_batches
from secateur.methods import spectral
from secateur.methods.checked import check
from secateur.methods.request import PruneRequest
from secateur.methods.task import resolve
from secateur.models.family import family_of
from secateur.models.host import host_of
from secateur.surgery.sequential import SequentialSettings, cut_front_to_back_
from secateur.training.distillation.losses import divergence

BUDGETS = ("50% hidden", "25% qk", "50% vo")
POWERS = {
    0.0: "all tokens alike",
    0.25: "fourth root",
    0.5: "root (used)",
    1.0: "in full",
}
JUDGED = 256
"""Calibration images that only judge."""


class Split(Bench):
    """The calibration images in two parts: to cut with and to judge by."""

    @cached_property
    def parts(self) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        pairs = self._decoded(self.calibration_path, self.images + JUDGED)
        images = torch.cat([images for images, _ in pairs])
        labels = torch.cat([labels for _, labels in pairs])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        cut, judge = order[: self.images], order[self.images :]
        fit = list(zip(images[cut].split(32), labels[cut].split(32), strict=True))
        return fit, list(images[judge].split(32))

    @cached_property
    def dense_judged(self) -> Tensor:
        model = self.model
        with torch.inference_mode():
            return torch.cat([model(images) for images in self.parts[1]])

    @cached_property
    def sensitivities(self) -> dict[str, Tensor]:
        """Mean squared gradient by token, relative to its mean."""
        batches = as_batches(self.parts[0])
        return spectral.sensitivities(host_of(self.model), batches, self.seed)


def main() -> None:
    args = parser("Token weights of the spectral preset.").parse_args()
    store, bench = Store("token_weights", args), Split(args)
    if not args.report:
        for budget in BUDGETS:
            for power in POWERS:
                store.run((budget, str(power)), partial(cell, bench, budget, power))
    write_report(store, args)


def cell(bench: Split, budget: str, power: float) -> Row:
    """Cut with one power of the weights; the divergence of the outputs on the judging images."""
    model = bench.model
    family = family_of(model)
    anatomy = family.read(model)
    task = resolve(check(PruneRequest(budget)), anatomy)
    shapes = shapes_of(
        anatomy, decide(anatomy, spectral.plain_candidates(anatomy, task), task.demand)
    )
    weights = {
        name: spectral.softened(square_N, power) for name, square_N in bench.sensitivities.items()
    }
    settings = replace(SequentialSettings(), token_weights=weights)
    smaller = copy.deepcopy(model)
    fit, _ = bench.parts
    cut_front_to_back_(smaller, model, shapes, as_batches(fit), settings)
    return divergences(bench, smaller)


def divergences(bench: Split, smaller: nn.Module) -> Row:
    """The divergence from the dense model on each judging image, in nats, and the agreement."""
    with torch.inference_mode():
        outputs_NC = torch.cat([smaller(images) for images in bench.parts[1]])
    dense_NC = bench.dense_judged
    each = torch.stack(
        [divergence(a[None], b[None]) for a, b in zip(outputs_NC, dense_NC, strict=True)]
    )
    same = (outputs_NC.argmax(1) == dense_NC.argmax(1)).float().mean()
    return {
        "kl_each": [round(float(kl), 6) for kl in each],
        "agreement": 100 * float(same),
        "judged": len(each),
        **{key: getattr(bench, key) for key in ("images", "seed", "threads")},
    }


def write_report(store: Store, args: argparse.Namespace) -> None:
    """Write docs/results/token_weights.md from what there is."""

    lines = [
        (f"{title}: power {power:g}", *(compared(store, budget, power, 0.0) for budget in BUDGETS))
        for power, title in POWERS.items()
    ]
    parts = [
        "# The benefit of token weights",
        "The preset `spectral` weights each token by a power of its sensitivity, the mean squared "
        "gradient of the loss (docs/methods/spectral.md, section 4). KL(dense ‖ pruned) in nats ± "
        "standard "
        "error, in brackets the agreement with the dense predictions, then the paired difference "
        "to the divergence under equal weights (below 0: better); ViT-Tiny, "
        f"{args.images} calibration images for the cut, {JUDGED} other calibration images for "
        "evaluation, one group at a time at the same share in every layer.",
        table(("weights", *BUDGETS), lines),
        "## Reproduce",
        f"```\n{command('token_weights', args)}\n```",
        f"{versions()}. Seed {args.seed}.",
    ]
    write_page("token_weights", "\n\n".join(parts))


def compared(store: Store, budget: str, power: float, base: float) -> str:
    """The divergence at a power, the agreement, and the paired difference to the power `base`."""
    row, other = store.get(budget, str(power)), store.get(budget, str(base))
    if row is None or row["status"] != "ok":
        return "not run"
    kl = torch.tensor(row["kl_each"])
    text = f"{_with_error(kl)} ({row['agreement']:.1f} %)"
    if power == base or other is None or other["status"] != "ok":
        return text
    return f"{text}, {_with_error(kl - torch.tensor(other['kl_each']), '+')}"


def _with_error(values: Tensor, sign: str = "") -> str:
    """Mean ± standard error."""
    return f"{float(values.mean()):{sign}.3f} ± {float(values.std() / len(values) ** 0.5):.3f}"


if __name__ == "__main__":
    main()
