"""EfficientFormer-L1 at the two sizes of SNP's table: counted, saved, loaded, run and exported.

Weights are random, as no trained ones are at hand: this shows that the sizes are reached and that
the models work, and says nothing about accuracy.
"""

import argparse
import tempfile
from pathlib import Path

import timm
import torch
from _common import INPUT, table, versions, write_page

import secateur
from secateur.export import export
from secateur.measuring.counting import counted

BUDGETS = ("0.6 GMACs", "0.5 GMACs")
GROUPS = (("hidden", "qk", "vo"), ("hidden", "qk", "vo", "width"))
IMAGES = 4


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--seed", type=int, default=0)
    args = given.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = timm.create_model("efficientformer_l1").eval()
    images = torch.randn(IMAGES, *INPUT)
    dense = counted(model, INPUT)
    rows = [("dense", "", f"{dense.macs / 1e9:.3f}", f"{dense.params / 1e6:.2f}", "", "", "")]
    for budget in BUDGETS:
        for groups in GROUPS:
            rows.append(_row(model, images, budget, groups, args.seed))
    text = [
        "# EfficientFormer-L1 at the sizes of SNP",
        f"Preset `snp`, random weights and {IMAGES} random images (seed {args.seed}): sizes only, "
        "no accuracy. MACs and parameters are counted in a forward pass; each model was saved, "
        "loaded again and exported to ONNX. Differences are the largest over the logits.",
        table(
            (
                "budget",
                "groups",
                "GMACs",
                "M parameters",
                "widths of the stages",
                "loaded against saved",
                "ONNX against torch",
            ),
            rows,
        ),
        f"`python benchmarks/efficientformer_points.py --seed {args.seed}`; {versions()}.",
    ]
    write_page("efficientformer", "\n\n".join(text))


def _row(
    model: torch.nn.Module, images: torch.Tensor, budget: str, groups: tuple[str, ...], seed: int
) -> tuple[str, ...]:
    result = secateur.prune(model, images, budget, preset="snp", groups=groups, seed=seed)
    cost = counted(result.model, INPUT)
    assert cost == result.cost, "counted differs from predicted"
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "small")
        again = secateur.load(Path(folder) / "small")
        with torch.inference_mode():
            apart = float((again(images) - result.model(images)).abs().max())
        parity = export(again, "onnx", Path(folder) / "small.onnx")
    widths = " ".join(
        str(result.plan.widths.get(stream.id, stream.width)) for stream in result.before.streams
    )
    return (
        budget,
        ", ".join(groups),
        f"{cost.macs / 1e9:.3f}",
        f"{cost.params / 1e6:.2f}",
        widths,
        f"{apart:.1e}",
        f"{parity.max_abs:.1e}",
    )


if __name__ == "__main__":
    main()
