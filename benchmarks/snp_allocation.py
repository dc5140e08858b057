"""How SNP's budget is spread over layers: equal shares, summed scores, measured losses.

    python benchmarks/snp_allocation.py [--images 48] [--budgets "80% macs,60% macs"]

Units are chosen from calibration images; agreement with the dense model and KL(dense || pruned) are
of other calibration images, so that no validation image takes part. Nothing is trained.
"""

import math
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import Bench, parser
from torch import Tensor, nn

from secateur.anatomy.types import AttentionShape
from secateur.pipeline import prune
from secateur.pipeline.result import Result

WAYS = {
    "equal shares": {"allocation": "uniform"},
    "summed scores": {"allocation": "ranking", "menus": "scores"},
    "measured losses": {"allocation": "knapsack", "menus": "measured"},
}


def main() -> None:
    """Print one line per way and budget, and the sizes from the first layer to the last."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--held", type=int, default=96, help="images to compare outputs on")
    arguments.add_argument("--budgets", default="80% macs,60% macs")
    arguments.set_defaults(images=48)
    args = arguments.parse_args()
    chosen = args.images
    args.images += args.held
    bench = Bench(args)
    images = torch.cat([images_BCHW for images_BCHW, _ in bench.calibration])
    fit, held = images[:chosen], images[chosen:]
    text = files("secateur.presets").joinpath("snp.yaml").read_text(encoding="utf-8")
    for budget in args.budgets.split(","):
        for name, changes in WAYS.items():
            lines = [line for line in text.splitlines() if line.split(":")[0] not in changes]
            lines += [f"{key}: {value}" for key, value in changes.items()]
            with tempfile.TemporaryDirectory() as folder:
                preset = Path(folder) / "snp.yaml"
                preset.write_text("\n".join(lines), encoding="utf-8")
                result = prune(bench.model, fit, budget, preset=str(preset), seed=args.seed)
            print(f"{budget}, {name}: {compared(bench.model, result.model, held)}")
            print(f"    {sizes(result)}")


@torch.no_grad()
def compared(dense: nn.Module, pruned: nn.Module, images: Tensor) -> str:
    """Agreement with its standard error, and the divergence."""
    q_NC, p_NC = (
        torch.cat([model(x_BCHW).log_softmax(-1) for x_BCHW in images.split(32)])
        for model in (dense, pruned)
    )
    same = float((q_NC.argmax(-1) == p_NC.argmax(-1)).float().mean())
    error = math.sqrt(same * (1 - same) / len(images))
    kl = float(F.kl_div(p_NC, q_NC, log_target=True, reduction="batchmean"))
    return f"agreement {100 * same:.1f} ± {100 * error:.1f} %, KL {kl:.3f} nats, n={len(images)}"


def sizes(result: Result) -> str:
    """Sizes of every layer, attention as qk/vo."""
    told = []
    for shape in result.plan.shapes.values():
        if shape is None:
            told.append("–")
        elif isinstance(shape, AttentionShape):
            told.append(f"{shape.qk}/{shape.vo}")
        else:
            told.append(str(shape.hidden))
    return " ".join(told)


if __name__ == "__main__":
    main()
