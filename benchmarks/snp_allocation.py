"""How SNP's budget is spread over layers: equal shares, summed scores, measured losses.

    python benchmarks/snp_allocation.py [--images 48] [--budgets "80% macs,60% macs"]

Units are chosen from calibration images; agreement with the dense model and KL(dense || pruned) are
of other calibration images, so that no validation image takes part. Nothing is trained.
"""

import argparse
import math
import tempfile
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import Bench, Row, Store, command, parser, table, versions, write_page
from torch import Tensor, nn

from secateur.models.types import AttentionShape, GroupName
from secateur.verbs.prune import prune
from secateur.verbs.result import Result

WAYS = {
    "equal shares": {"allocation": "uniform"},
    "summed scores": {"allocation": "ranking", "menus": "scores"},
    "measured losses": {"allocation": "knapsack", "menus": "measured"},
}
GROUPS: dict[GroupName, str] = {
    "qk": "Query/key dims per head",
    "vo": "Value dims per head",
    "hidden": "Neurons",
}


def main() -> None:
    """Measure what is missing and write the page."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--held", type=int, default=96, help="images to compare outputs on")
    arguments.add_argument("--budgets", default="80% macs,60% macs")
    arguments.set_defaults(images=48)
    args = arguments.parse_args()
    store = Store("snp_allocation", args)
    rows: dict[tuple[str, str], Row] = {}
    bench = Bench(argparse.Namespace(**{**vars(args), "images": args.images + args.held}))
    for budget in args.budgets.split(","):
        for way in WAYS:
            cell = (budget, way, f"held{args.held}")
            make = partial(measured, bench, args.images, budget, way)
            rows[budget, way] = store.run(cell, make)
    write_report(rows, args)


def measured(bench: Bench, chosen: int, budget: str, way: str) -> Row:
    """Sizes that one way gives, and what they do to the outputs."""
    images = torch.cat([images_BCHW for images_BCHW, _ in bench.calibration])
    text = files("secateur.presets").joinpath("snp.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.split(":")[0] not in WAYS[way]]
    lines += [f"{key}: {value}" for key, value in WAYS[way].items()]
    with tempfile.TemporaryDirectory() as folder:
        preset = Path(folder) / "snp.yaml"
        preset.write_text("\n".join(lines), encoding="utf-8")
        result = prune(
            bench.model,
            images[:chosen],
            budget,
            preset=str(preset),
            seed=bench.seed,
            exact_tail=False,
        )
    macs = result.cost.macs / result.before.cost().macs
    return {**compared(bench.model, result.model, images[chosen:]), **sizes(result), "macs": macs}


def write_report(rows: dict[tuple[str, str], Row], args: argparse.Namespace) -> None:
    """Write docs/results/snp_allocation.md."""
    parts = [
        "# Allocation of SNP's budget over the layers",
        f"ViT-Tiny/16 at 224 px, preset `snp` without any training. Units are chosen from "
        f"{args.images} calibration images (seed {args.seed}); agreement of the top class with "
        "the "
        f"dense model ± binomial standard error, and KL(dense ‖ pruned) in nats, are of "
        f"{args.held} other calibration images. `equal shares`: every layer keeps the same share. "
        "`summed scores`: units of least score are removed first, each layer's scores divided by "
        "their sum. "
        "`measured losses`: the method of the preset (the degradation of each group at half and "
        "at a quarter of its size, and a knapsack). No size is set by hand.",
    ]
    for budget in args.budgets.split(","):
        own = {way: rows[budget, way] for way in WAYS}
        parts += [
            f"## {budget}",
            table(("sizes by", "MACs", "agreement", "KL"), map(_line, own.items())),
        ]
        for group, title in GROUPS.items():
            layers = [str(i) for i in range(len(own["equal shares"].get(group, ())))]
            parts += [
                f"{title}, block by block:",
                table(
                    ("sizes by", *layers),
                    ((way, *map(str, row.get(group, ()))) for way, row in own.items()),
                ),
            ]
    held = f"--held {args.held} --budgets '{args.budgets}'"
    parts += [
        "## How this was measured",
        f"`{command('snp_allocation', args)} {held}`; {versions()}.",
    ]
    write_page("snp_allocation", "\n\n".join(parts))


def _line(item: tuple[str, Row]) -> tuple[str, ...]:
    way, row = item
    if row["status"] != "ok":
        return (way, row["status"], "", "")
    return (
        way,
        f"{100 * row['macs']:.1f} %",
        f"{100 * row['agreement']:.1f} ± {100 * row['stderr']:.1f} %",
        f"{row['kl']:.3f}",
    )


@torch.no_grad()
def compared(dense: nn.Module, pruned: nn.Module, images: Tensor) -> Row:
    """Agreement with its standard error, and the divergence."""
    q_NC, p_NC = (
        torch.cat([model(x_BCHW).log_softmax(-1) for x_BCHW in images.split(32)])
        for model in (dense, pruned)
    )
    same = float((q_NC.argmax(-1) == p_NC.argmax(-1)).float().mean())
    return {
        "agreement": same,
        "stderr": math.sqrt(same * (1 - same) / len(images)),
        "kl": float(F.kl_div(p_NC, q_NC, log_target=True, reduction="batchmean")),
    }


def sizes(result: Result) -> dict[GroupName, list[int]]:
    """Sizes of every layer by group, 0 where a layer is gone."""
    told: dict[GroupName, list[int]] = {group: [] for group in GROUPS}
    for branch in result.before.branches:
        shape = result.plan.shapes[branch.id]
        for group in ("qk", "vo") if isinstance(branch.shape, AttentionShape) else ("hidden",):
            told[group].append(0 if shape is None else shape.size(group))
    return told


if __name__ == "__main__":
    main()
