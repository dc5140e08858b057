"""EfficientFormer-L1 at the two sizes of SNP's table, L3 and L7 at half: counted, saved, exported.

Weights are random, as no trained ones are at hand: this shows that the sizes are reached and that
the models work, and says nothing about accuracy.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
from _common import INPUT, Row, Store, table, versions, write_page

import secateur
from secateur.export import export
from secateur.measurement.counting import counted

UNITS = ("hidden", "qk", "vo")
POINTS = (
    ("l1", "0.6 GMACs", UNITS),
    ("l1", "0.6 GMACs", (*UNITS, "width")),
    ("l1", "0.5 GMACs", UNITS),
    ("l1", "0.5 GMACs", (*UNITS, "width")),
    ("l3", "50% macs", UNITS),
    ("l7", "50% macs", UNITS),
)
IMAGES = 4


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--seed", type=int, default=0)
    args = given.parse_args()
    torch.set_num_threads(1)
    args.images, args.limit_eval = IMAGES, None
    store = Store("efficientformer_points", args)
    rows = []
    for size, budget, groups in POINTS:
        make = partial(_measured, size, budget, groups, args.seed)
        way = ("spread evenly",) if _even(size, groups) else ()
        rows.append(store.run((size, budget, *groups, *way), make))
    text = [
        "# EfficientFormer at the sizes of SNP",
        f"Preset `snp`, random weights and {IMAGES} random images (seed {args.seed}): only sizes "
        "are reported. MACs and parameters are counted in a forward pass; each model was saved, "
        "loaded, run and exported to ONNX. Differences are maxima over the logits. "
        "SNP's table has L1 at 0.6 and 0.5 GFLOPs; L3 and L7 show that larger members are "
        "supported. "
        "With `width`, and for L3 and L7, the budget is spread evenly (`--allocation uniform`): "
        "by measured losses, the stages would keep their widths.",
        table(
            (
                "model",
                "budget",
                "groups",
                "GMACs (dense)",
                "M parameters (dense)",
                "widths of the stages",
                "loaded against saved",
                "ONNX against torch",
            ),
            map(_line, POINTS, rows),
        ),
        f"`python benchmarks/efficientformer_points.py --seed {args.seed}`; {versions()}.",
    ]
    write_page("efficientformer", "\n\n".join(text))


def _even(size: str, groups: tuple[str, ...]) -> bool:
    """Whether every layer keeps the same share.

    By measured losses, the widths would all stay; and those of larger models take long to measure.
    """
    return size != "l1" or "width" in groups


def _measured(size: str, budget: str, groups: tuple[str, ...], seed: int) -> Row:
    """Cut, count, save, load, run and export one model."""
    torch.manual_seed(seed)
    model = timm.create_model(f"efficientformer_{size}").eval()
    images = torch.randn(IMAGES, *INPUT)
    dense = counted(model, INPUT)
    even = {"allocation": "uniform"} if _even(size, groups) else {}
    result = secateur.prune(model, images, budget, preset="snp", groups=groups, seed=seed, **even)
    cost = counted(result.model, INPUT)
    assert cost == result.cost, "counted differs from predicted"
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "small")
        again = secateur.load(Path(folder) / "small")
        with torch.inference_mode():
            apart = float((again(images) - result.model(images)).abs().max())
        parity = export(again, "onnx", Path(folder) / "small.onnx")
    widths = [result.plan.widths.get(stream.id, stream.width) for stream in result.before.streams]
    return {
        "macs": [cost.macs, dense.macs],
        "params": [cost.params, dense.params],
        "widths": widths,
        "loaded": apart,
        "exported": parity.max_abs,
    }


def _line(point: tuple[str, str, tuple[str, ...]], row: Row) -> tuple[str, ...]:
    size, budget, groups = point
    start = (size.upper(), budget, ", ".join(groups))
    if row["status"] != "ok":
        return (*start, row["status"], "", "", "", "")
    return (
        *start,
        "{:.3f} ({:.3f})".format(*(macs / 1e9 for macs in row["macs"])),
        "{:.2f} ({:.2f})".format(*(params / 1e6 for params in row["params"])),
        " ".join(map(str, row["widths"])),
        f"{row['loaded']:.1e}",
        f"{row['exported']:.1e}",
    )


if __name__ == "__main__":
    main()
