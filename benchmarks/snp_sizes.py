"""The DeiT models of SNP's table: counted, saved, loaded, run and exported.

    python benchmarks/snp_sizes.py [--only deit_tiny_snp_0.6g]

Weights are random, as no trained ones are at hand: this shows that the sizes are reached and that
the models work, and says nothing about accuracy. For the same reason the presets that remove heads
or blocks first spread the budget evenly here; losses measured on random weights would mean nothing.
"""

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from _common import INPUT, Row, Store, table, versions, write_page
from torch import nn

import secateur
from secateur.export import export
from secateur.measurement.counting import counted
from secateur.models.types import AttentionShape
from secateur.verbs.result import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model of the table; `macs` and `params` follow from the paper's ratios, or its table."""

    model: str
    macs: float
    params: float | None = None
    preset: str = "snp"
    budget: str | None = None


POINTS = {
    "deit_tiny_snp_0.6g": Point(model="deit_tiny_patch16_224", macs=0.638, params=3.01),
    "deit_small_snp_2.0g": Point(model="deit_small_patch16_224", macs=2.037, params=10.06),
    "deit_small_snp_1.3g": Point(model="deit_small_patch16_224", macs=1.265, params=6.47),
    "deit_base_snp_6.4g": Point(model="deit_base_patch16_224", macs=6.322, params=31.59),
    "snp+head": Point(
        model="deit_base_patch16_224", macs=3.5, preset="snp+head", budget="3.5 GMACs"
    ),
    "snp+block": Point(
        model="deit_base_patch16_224", macs=3.5, preset="snp+block", budget="3.5 GMACs"
    ),
}
IMAGES = 4


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--only", choices=POINTS)
    args = given.parse_args()
    args.images, args.limit_eval = IMAGES, None
    torch.set_num_threads(1)
    store = Store("snp_sizes", args)
    for name, point in POINTS.items():
        if args.only in (None, name):
            store.run((name,), partial(measured, name, point, args.seed))
    lines = [_line(name, point, store.get(name)) for name, point in POINTS.items()]
    text = [
        "# SNP's DeiT models: sizes",
        f"Random weights and {IMAGES} random images (seed {args.seed}): only sizes are reported. "
        "MACs and parameters are counted in a forward pass. `wanted` is the size implied by the "
        "ratios released with the paper (recipes), or the figure in its table (heads or blocks "
        "removed first, under a uniform allocation). Each model was saved, loaded, run and "
        "exported to ONNX; differences are maxima over the logits.",
        table(
            (
                "recipe or preset", "model", "GMACs", "wanted", "M parameters", "wanted",
                "of the dense MACs", "left", "loaded against saved", "ONNX against torch",
            ),
            lines,
        ),
        f"`python benchmarks/snp_sizes.py --seed {args.seed}`; {versions()}.",
    ]  # fmt: skip
    write_page("snp_sizes", "\n\n".join(text))


def measured(name: str, point: Point, seed: int) -> Row:
    """Cut, count, save, load, run and export one model."""
    torch.manual_seed(seed)
    model = timm.create_model(point.model).eval()
    images = torch.randn(IMAGES, *INPUT)
    dense = counted(model, INPUT)
    what = (
        {"recipe": name} if point.budget is None
        else {"budget": point.budget, "allocation": "uniform"}
    )  # fmt: skip
    result = secateur.prune(model, images, preset=point.preset, seed=seed, exact_tail=False, **what)
    cost = counted(result.model, INPUT)
    assert cost == result.cost, "counted differs from predicted"
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "small")
        again = secateur.load(Path(folder) / "small")
        apart = _apart(again, result.model, images)
        parity = export(again, "onnx", Path(folder) / "small.onnx")
    return {
        "macs": cost.macs / 1e9,
        "params": cost.params / 1e6,
        "share": cost.macs / dense.macs,
        "left": _left(result),
        "loaded": apart,
        "exported": parity.max_abs,
    }


@torch.inference_mode()
def _apart(one: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    return float((one(images) - other(images)).abs().max())


def _left(result: Result) -> str:
    """What is left of the width, the blocks and the heads."""
    shapes = list(result.plan.shapes.values())
    heads = sum(shape.heads for shape in shapes if isinstance(shape, AttentionShape))
    blocks = sum(
        any(result.plan.shapes[branch] is not None for branch in block.branches)
        for block in result.before.blocks
    )
    return f"width {result.after.width}, {blocks} blocks, {heads} heads"


def _line(name: str, point: Point, row: Row | None) -> tuple[str, ...]:
    wanted = f"{point.macs:.3f}", "" if point.params is None else f"{point.params:.2f}"
    if row is None or row["status"] != "ok":
        state = "not run" if row is None else row["status"]
        return (f"`{name}`", point.model, state, wanted[0], "", wanted[1], "", "", "", "")
    return (
        f"`{name}`",
        point.model,
        f"{row['macs']:.3f}",
        wanted[0],
        f"{row['params']:.2f}",
        wanted[1],
        f"{100 * row['share']:.1f} %",
        row["left"],
        f"{row['loaded']:.1e}",
        f"{row['exported']:.1e}",
    )


if __name__ == "__main__":
    main()
