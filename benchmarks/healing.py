"""Healing without labels, on the calibration images alone: accuracy before and after, with time.

`python benchmarks/healing.py --images 1000` prunes ViT-Tiny by `spectral` to 60 % of its MACs,
heals it, and writes docs/results/healing.md. `--select` compares settings instead, in short runs:
the cut sees four fifths of the calibration images, and the divergence is judged on the others,
which neither cut nor training saw; validation images are not opened then.
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
from secateur.data.images import ImageSet, open_images
from secateur.data.preprocessing import Preprocessing
from secateur.measurement.accuracy import predict, summarize
from secateur.training.heal_and_train import HealSettings
from secateur.training.identity import digest
from secateur.training.images.held_out import hold_out
from secateur.training.settings import read_settings

BUDGET = "60% macs"
CANDIDATES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "learning rate 3e-5": {"optimizer.learning_rate": 3e-5},
    "learning rate 3e-4": {"optimizer.learning_rate": 3e-4},
    "no layer-wise phase": {"distil.layerwise": 0.0},
}
FEWER_LOOKS = {"held_out": 0.1, "checks": 4, "checkpoint_seconds": 30}


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


def images_of(bench: Bench) -> ImageSet:
    """The calibration images."""
    return open_images(
        bench.calibration_path, Preprocessing.of(bench.model), limit=bench.images, seed=bench.seed
    )


def pruned(bench: Bench, images: ImageSet, name: str = "", effort: str = "full") -> nn.Module:
    """The model to heal, made once."""
    out = HERE / "out" / f"healing_pruned{name}_n{bench.images}_seed{bench.seed}"
    if not out.is_dir():
        secateur.prune(
            bench.model, images, BUDGET, seed=bench.seed, effort=effort, exact_tail=False
        ).save(out)
    return secateur.load(out)


def heal(
    args: argparse.Namespace, bench: Bench, student: nn.Module, images: ImageSet, changes: Row
) -> Any:
    """Heal a pruned model under changed settings; goes on where it was stopped."""
    settings = read_settings(HealSettings, args.config, {"seed": args.seed, **changes})
    folder = HERE / "out" / f"healing_{digest(student)}_{settings.steps}_{settings.held_out}"
    return secateur.heal(
        student,
        images,
        reference=bench.model,
        settings=settings,
        folder=folder.with_name(folder.name + "_" + name_of(changes)),
        on_log=lambda row: print(json.dumps(row), flush=True),
    )


def name_of(changes: Row) -> str:
    """Changes as a part of a file name."""
    return "_".join(f"{key}={value}" for key, value in changes.items())


def select(args: argparse.Namespace, bench: Bench, store: Store) -> None:
    """Run every candidate for the given number of steps; judge on images nothing has seen."""
    images = images_of(bench)
    seen, unseen = hold_out(images, len(images), 0.2)
    assert isinstance(seen, ImageSet) and isinstance(unseen, ImageSet)

    def divergence(model: nn.Module) -> float | None:
        return secateur.evaluate(model, unseen, reference=bench.model).kl

    def run(changes: Row) -> Row:
        student = pruned(bench, seen, "_select", "quick")
        quiet = {"steps": args.steps, "held_out": 0.0, **changes}
        found = heal(args, bench, student, seen, quiet)
        return {
            "before": divergence(student),
            "after": divergence(found.model),
            "seconds": found.report.seconds,
        }

    rows = []
    for name, changes in CANDIDATES.items():
        row = store.run(("select", str(args.steps), name), lambda c=changes: run(c))
        rows.append((name, f"{row['before']:.4f}", f"{row['after']:.4f}"))
    print(table(("settings", "KL before", "KL after"), rows))


def measure(args: argparse.Namespace, bench: Bench, store: Store) -> None:
    """Accuracy of the dense, the pruned and the healed model on the same validation images."""

    def score(model: nn.Module) -> Row:
        found = predict(model, bench.validation, reference=bench.model)
        bits = "" if found.correct_N is None else "".join(str(int(b)) for b in found.correct_N)
        return {**summarize(found).to_json(), "correct": bits}

    def healed() -> Row:
        images = images_of(bench)
        changes = {"steps": args.steps, **FEWER_LOOKS}
        found = heal(args, bench, pruned(bench, images), images, changes)
        report = found.report.to_json()
        return {**score(found.model), "report": report, "params": found.record()["params"]}

    store.run(("dense",), lambda: score(bench.model))
    store.run(("pruned",), lambda: score(pruned(bench, images_of(bench))))
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
                f"the {args.images} calibration images of the cut ("
                f"{told['images']} for training, the others held out). {args.threads} thread(s), "
                "no accelerator.",
                table(("model", f"top-1 on {dense['n']} images, %", "agreement, %", "KL"), rows),
                f"Gain on the same images: **{gain:+.1f} ± {error:.1f} points** in "
                f"{told['seconds']:.0f} s of training, held-out images included "
                f"({rate:.1f} images a second). The ± are standard errors; one seed.",
                "KL(dense ‖ healed) in nats on the held-out calibration images. The cut was "
                "fitted to these images too, which biases step 0 downwards. The last weights or "
                "their running average are kept, whichever is better:",
                table(("step", "running average", "KL"), scores),
                f"## Reproduce\n\n```\n{command('healing', args)} --steps {args.steps}\n```",
                f"{versions('accelerate')}. Seed {args.seed}.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
