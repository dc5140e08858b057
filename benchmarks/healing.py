"""Healing without labels, on the calibration images alone: accuracy before and after, with time.

`python benchmarks/healing.py --images 1000` prunes ViT-Tiny by `spectral` to 60 % of its MACs,
heals it, and writes docs/results/healing.md. `--select` compares settings by the divergence on
held-out calibration images instead, in short runs; validation images are not opened then.
A stopped run goes on from its checkpoint; delete benchmarks/out/healing* to start afresh.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from _common import (
    HERE,
    Bench,
    Row,
    Store,
    command,
    difference,
    parser,
    table,
    versions,
    write_page,
)
from _common import top1 as shown
from torch import nn

import secateur
from secateur.data.preprocessing import Preprocessing
from secateur.healing.settings import read_settings
from secateur.healing.verbs import HealSettings
from secateur.measuring.accuracy import predict, summarize
from secateur.pipeline.opening import open_images

BUDGET = "60% macs"
CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learning rate 3e-4": {"optimizer.learning_rate": 3e-4},
    "learning rate 3e-4, crops from 35 %": {
        "optimizer.learning_rate": 3e-4,
        "augment.least_area": 0.35,
    },
}


def main() -> None:
    given = parser("Healing on the calibration images.")
    given.add_argument("--steps", type=int, default=200)
    given.add_argument("--config", type=Path, help="settings in YAML instead of the defaults")
    given.add_argument("--select", action="store_true", help="compare settings in short runs")
    args = given.parse_args()
    store, bench = Store("healing", args), Bench(args)
    if args.select:
        select(args, bench, store)
    elif not args.report:
        measure(args, bench, store)
    if not args.select:
        report(args, store)


def pruned(bench: Bench) -> nn.Module:
    """The model to heal, made once."""
    out = HERE / "out" / f"healing_pruned_n{bench.images}_seed{bench.seed}"
    if not out.is_dir():
        result = secateur.prune(
            bench.model, bench.calibration_path, BUDGET, limit=bench.images, seed=bench.seed
        )
        result.save(out)
    return secateur.load(out)


def heal(args: argparse.Namespace, bench: Bench, name: str, changes: Row) -> Any:
    """Heal the pruned model under changed settings; goes on where it was stopped."""
    student = pruned(bench)
    images = open_images(
        bench.calibration_path, Preprocessing.of(student), limit=bench.images, seed=bench.seed
    )
    settings = read_settings(HealSettings, args.config, {"seed": args.seed, **changes})
    return secateur.heal(
        student,
        images,
        reference=bench.model,
        settings=settings,
        folder=HERE / "out" / f"healing_{name.replace(' ', '_').replace(',', '')}",
        on_log=lambda row: print(json.dumps(row), flush=True),
    )


def select(args: argparse.Namespace, bench: Bench, store: Store) -> None:
    """Run every candidate for the given number of steps and list held-out divergences."""

    def run(name: str, changes: Row) -> Row:
        found = heal(args, bench, f"select {args.steps} {name}", {"steps": args.steps, **changes})
        scores = found.report.scores
        best = min(scores, key=lambda score: score.value)
        return {
            "before": scores[0].value,
            "after": best.value,
            "averaged": best.averaged,
            "seconds": found.report.seconds,
        }

    rows = []
    for name, changes in CANDIDATES.items():
        row = store.run(("select", str(args.steps), name), lambda n=name, c=changes: run(n, c))
        rows.append((name, f"{row['before']:.4f}", f"{row['after']:.4f}", str(row["averaged"])))
    print(table(("settings", "KL before", "KL after", "averaged"), rows))


def measure(args: argparse.Namespace, bench: Bench, store: Store) -> None:
    """Accuracy of the dense, the pruned and the healed model on the same validation images."""

    def score(model: nn.Module) -> Row:
        found = predict(model, bench.validation, reference=bench.model)
        bits = "" if found.correct_N is None else "".join(str(int(b)) for b in found.correct_N)
        return {**summarize(found).to_json(), "correct": bits}

    def healed() -> Row:
        found = heal(args, bench, f"{args.steps} steps", {"steps": args.steps})
        report = found.report.to_json()
        return {**score(found.model), "report": report, "params": found.record()["params"]}

    store.run(("dense",), lambda: score(bench.model))
    store.run(("pruned",), lambda: score(pruned(bench)))
    store.run((f"healed {args.steps}",), healed)


def report(args: argparse.Namespace, store: Store) -> None:
    """Write the page from the store."""
    names = {"dense": "dense", "pruned": "`spectral` at 60 % of MACs, not trained"}
    names[f"healed {args.steps}"] = f"the same after {args.steps} steps"
    found = {key: store.get(key) for key in names}
    dense, before, after = found.values()
    if dense is None or before is None or after is None or after["status"] != "ok":
        raise SystemExit("not everything was measured yet; run without --report")
    rows = [
        (names[key], shown(row), f"{row['agreement']:.1f}", f"{row['kl']:.3f}")
        for key, row in found.items()
        if row is not None
    ]
    gain, error = difference(after, before)
    told = after["report"]
    scores = [
        (str(s["step"]), "yes" if s["averaged"] else "no", f"{s['values']['kl']:.4f}")
        for s in told["scores"]
    ]
    rate = sum(row["images_per_second"] for row in told["history"]) / len(told["history"])
    write_page(
        "healing",
        "\n\n".join(
            [
                "# Healing without labels",
                f"ViT-Tiny/16 at 224 px, cut by `spectral` to {BUDGET}, then "
                f"{told['budget']} of {told['settings']['batch_size']} images without labels, on "
                f"the {args.images} calibration images that the cut saw ("
                f"{told['images']} to learn on, the others held out). {args.threads} thread(s), "
                "no accelerator.",
                table(("model", f"top-1 on {dense['n']} images, %", "agreement, %", "KL"), rows),
                f"Gain on the same images: **{gain:+.1f} ± {error:.1f} points** in "
                f"{told['seconds']:.0f} s of training, held-out images included "
                f"({rate:.1f} images a second). The ± are standard errors; one seed.",
                "KL(dense ‖ healed) in nats on the held-out calibration images, by which the "
                "weights were chosen:",
                table(("step", "running average", "KL"), scores),
                f"## Reproduce\n\n```\n{command('healing', args)} --steps {args.steps}\n```",
                f"{versions('accelerate')}. Seed {args.seed}.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
