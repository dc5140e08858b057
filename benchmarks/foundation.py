"""The foundation's figures: accuracy, counts, latency, cost, and what is saved and loaded again.

`python benchmarks/foundation.py` measures what is missing and writes the page;
with `--report` it only writes the page from what was measured.
"""

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _common import INPUT, Bench, Row, Store, command, parser, table, top1, versions, write_page

import secateur
from secateur.measurement.counting import counted
from secateur.verbs.load import load_shape, open_data

HALVES = {
    "magnitude": "magnitude, no repair",
    "vbp": "variance, mean folded into the bias",
    "energy": "energy, least squares",
}
GOAL = {"magnitude": "< 5", "vbp": "about 8", "energy": "≥ 38"}
COUNTED = ("timm:vit_tiny_patch16_224", "timm:deit_base_patch16_224")
BUDGET = "50% macs"
WHOLE = {
    "energy": {"preset": "energy"},
    "spectral, quick": {"preset": "spectral", "effort": "quick"},
    "spectral, full": {"preset": "spectral", "effort": "full"},
}
"""Runs whose whole cost is measured."""
ALLOWED = {"energy": 6, "spectral, quick": 20, "spectral, full": 60}
"""Forward passes that each may cost."""
RELOAD = """
import sys, torch, secateur
torch.set_num_threads(int(sys.argv[2]))
model = secateur.load(sys.argv[1])
with torch.inference_mode():
    logits = model(torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(7)))
torch.save(logits, sys.argv[3])
"""


def main() -> None:
    args = parser("Figures of the foundation on real weights and images.").parse_args()
    store = Store("foundation", args)
    bench = Bench(args)
    if not args.report:
        store.run(("dense",), lambda: dense(bench))
        for preset in HALVES:
            store.run(("half", preset), partial(half, bench, preset))
        for name in COUNTED:
            store.run(("inspect", name), partial(counts, name))
        store.run(("latency",), lambda: latency(bench))
        for name, changes in WHOLE.items():
            store.run(("whole", name), partial(whole, bench, changes))
    write_report(store, args)


def dense(bench: Bench) -> Row:
    """Accuracy of the dense model through the public function, from the folder."""
    found = secateur.evaluate(
        bench.load(), bench.validation_path, limit=bench.limit_eval, seed=bench.seed
    )
    return found.to_json()


def half(bench: Bench, preset: str) -> Row:
    """Half the neurons of every MLP."""
    return bench.measure(
        lambda: (
            secateur.prune(
                bench.model, bench.calibration, "50% hidden", preset=preset, seed=bench.seed
            ).model
        )
    )


def counts(name: str) -> Row:
    """What inspect says, beside what a forward pass on the meta device counts."""
    model = load_shape(name, device="meta")
    found = secateur.inspect(model)
    ran = counted(model, found.input_size)
    return {"macs": found.macs, "params": found.params, "ran": [ran.macs, ran.params]}


def latency(bench: Bench) -> Row:
    """Dense and pruned in turns, eager."""
    result = secateur.prune(
        bench.model, bench.calibration, BUDGET, preset="energy", seed=bench.seed, exact_tail=False
    )
    rows = secateur.bench(
        {"dense": bench.model, "pruned": result.model},
        INPUT,
        batch_sizes=(1, 32),
        threads=bench.threads,
        seed=bench.seed,
    )
    share = result.cost.macs / result.cost_dense.macs
    return {"macs": share, "rows": [row.to_json() for row in rows]}


def whole(bench: Bench, changes: dict[str, str]) -> Row:
    """From weights and a folder to a saved directory, then loaded by a fresh process."""
    decoding = _decoding(bench)
    before = bench.forward_cost()
    with TemporaryDirectory(prefix="secateur-") as scratch:
        out, answer = Path(scratch) / "small", Path(scratch) / "logits.pt"
        start = time.process_time()
        result = secateur.prune(
            bench.load(),
            bench.calibration_path,
            BUDGET,
            seed=bench.seed,
            exact_tail=False,
            limit=bench.images,
            preset=changes["preset"],
            effort=changes.get("effort", "full"),
        )
        result.save(out)
        seconds = time.process_time() - start
        forward = (before + bench.forward_cost()) / 2
        asked = [sys.executable, "-c", RELOAD, str(out), str(bench.threads), str(answer)]
        subprocess.run(asked, check=True)
        images_BCHW = torch.randn(8, *INPUT, generator=torch.Generator().manual_seed(7))
        with torch.inference_mode():
            apart = result.model(images_BCHW) - torch.load(answer, weights_only=True)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "seconds": seconds,
        "stages": result.seconds,
        "forward_seconds": forward,
        "decoding_seconds": decoding,
        "passes": seconds / forward,
        "apart": float(apart.abs().max()),
        "bytes": size,
        **bench.setting(),
    }


def _decoding(bench: Bench) -> float:
    """Seconds to open the calibration images and decode them once: checked and then read."""
    start = time.process_time()
    batches, _ = open_data(bench.model, bench.calibration_path, limit=bench.images, seed=bench.seed)
    for _ in batches:
        pass
    return time.process_time() - start


def write_report(store: Store, args: argparse.Namespace) -> None:
    """Write docs/results/foundation.md from what there is."""
    parts = [
        "# Accuracy, counts, latency and cost on real weights and images",
        f"ViT-Tiny/16 at 224 px, {args.images} calibration images, {args.threads} thread(s).",
        "## Accuracy",
        *_accuracy(store),
        "## Counts",
        *_counts(store),
        "## Latency",
        *_latency(store),
        "## Cost, from loading to the saved directory, and loading again",
        *_whole(store, args),
        "## Reproduce",
        f"```\n{command('foundation', args)}\n```",
        f"{versions()}. Seed {args.seed}.",
    ]
    write_page("foundation", "\n\n".join(parts))


def _accuracy(store: Store) -> list[str]:
    row = store.get("dense")
    lines = [("dense", top1(row), "82.5 ± 1.5", "–", "–")]
    for preset, title in HALVES.items():
        own = store.get("half", preset)
        passes = f"{own['passes']:.1f}" if own and own["status"] == "ok" else "–"
        share = f"{100 * own['macs']:.1f}" if own and own["status"] == "ok" else "–"
        lines.append((f"half the neurons: {title}", top1(own), GOAL[preset], share, passes))
    images = row["n"] if row and row["status"] == "ok" else 0
    head = ("model", f"top-1 on {images} images, %", "asked for", "MACs, %", "forward passes")
    return [table(head, lines)]


def _counts(store: Store) -> list[str]:
    lines = []
    for name in COUNTED:
        row = store.get("inspect", name)
        if row and row["status"] == "ok":
            ran = " / ".join(f"{number:,}" for number in row["ran"])
            lines.append((f"`{name}`", f"{row['macs']:,}", f"{row['params']:,}", ran))
    return [
        table(("model", "MACs by inspect", "parameters", "counted in a forward pass"), lines),
        "QKᵀ and AV are counted.",
    ]


def _latency(store: Store) -> list[str]:
    row = store.get("latency")
    if row is None or row["status"] != "ok":
        return ["not measured"]
    lines = []
    for one in row["rows"]:
        macs = 100.0 if one["model"] == "dense" else 100 * row["macs"]
        spread = f"{one['median_ms']:.2f} ({one['iqr_ms']:.2f})"
        runs, size = str(one["runs"]), str(one["batch_size"])
        lines.append((one["model"], size, f"{macs:.1f}", spread, f"{100 * one['ratio']:.1f}", runs))
    head = ("model", "batch", "MACs, %", "median ms (interquartile range)", "time, %", "runs")
    return [f"Preset `energy` at `{BUDGET}`, eager, in turns.", table(head, lines)]


def _whole(store: Store, args: argparse.Namespace) -> list[str]:
    lines = []
    for name, most in ALLOWED.items():
        row = store.get("whole", name)
        if row is None or row["status"] != "ok":
            lines.append((name, *["not measured"] * 7))
            continue
        stages = ", ".join(f"{name} {value:.1f}" for name, value in row["stages"].items())
        lines.append(
            (
                name,
                f"{row['seconds']:.1f}",
                stages,
                f"{row['forward_seconds']:.1f}",
                f"{row['decoding_seconds']:.1f}",
                f"**{row['passes']:.1f}** (at most {most})",
                f"{row['apart']:.1e}",
                f"{row['bytes'] / 1e6:.1f}",
            )
        )
    head = (
        "preset",
        "processor seconds, everything",
        "stages, by the clock",
        "one forward pass, s",
        "opening and decoding alone, s",
        "forward passes",
        "largest difference of logits",
        "MB saved",
    )
    return [
        f"`{BUDGET}` from a folder of images: everything holds the loading of the weights, the "
        f"checking and decoding of {args.images} images and the saving. The forward pass is over "
        "decoded images, before and after in the same process; both count processor time, since "
        "the machine does other work as well. The difference is between the model in memory and "
        "the saved one in a fresh process.",
        table(head, lines),
    ]


if __name__ == "__main__":
    main()
