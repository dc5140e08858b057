"""The dense CIFAR-10 reference: ViT-Tiny, pretrained on ImageNet, fine-tuned at 96 pixels.

`python benchmarks/cifar_reference.py` trains on the 50,000 training images, of which 2,000 are held
out to choose the weights by, measures the 10,000 test images once at the end, saves the model to
benchmarks/out/cifar_reference and writes docs/results/cifar_reference.md with log and curve. A
stopped run goes on when the same command is given again. Hyperparameters were not searched; they
are customary ones for fine-tuning.
"""

import argparse
import json
import shutil
from pathlib import Path

from _common import HERE, RESULTS, versions, write_page
from _common import table as markdown

import secateur
from secateur.report.drawing.chart import Axis, Chart, Line
from secateur.report.drawing.chart_svg import file_svg
from secateur.storage.spec import SPEC
from secateur.training.heal_and_train import FineTuneSettings
from secateur.training.settings import read_settings
from secateur.verbs.train import open_to_train

IMAGE_SIZE = 96
SETTINGS = {
    "batch_size": 128,
    "optimizer.learning_rate": 3e-4,
    "optimizer.weight_decay": 0.05,
    "optimizer.layer_decay": 0.75,
    "schedule.least": 0.01,
    "augment.least_area": 0.6,
    "label_smoothing": 0.1,
    "held_out": 0.04,
    "log_every": 20,
    "checks": 6,
}


def main() -> None:
    given = argparse.ArgumentParser(description="Train the dense CIFAR-10 reference.")
    given.add_argument("--shared", type=Path, default=HERE.parent.parent / "shared")
    given.add_argument("--epochs", type=float, default=3.0)
    given.add_argument("--limit", type=int, help="training images (default: all)")
    given.add_argument("--limit-eval", type=int, help="test images (default: all)")
    given.add_argument("--img-size", type=int, default=IMAGE_SIZE)
    given.add_argument("--threads", type=int, default=2)
    given.add_argument("--workers", type=int, default=0)
    given.add_argument("--precision", choices=("no", "bf16"), default="no")
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--out", type=Path, default=HERE / "out" / "cifar_reference")
    given.add_argument("--no-page", action="store_true", help="do not write the page of results")
    args = given.parse_args()
    if not (args.out / SPEC).is_file():
        train(args)
    if not args.no_page:
        report(args)


def train(args: argparse.Namespace) -> None:
    """Train, evaluate once and save; goes on where it was stopped."""
    import torch

    torch.set_num_threads(args.threads)
    data = args.shared / "data" / "cifar10"
    changes = {key: getattr(args, key) for key in ("epochs", "seed", "workers", "precision")}
    settings = read_settings(FineTuneSettings, None, {**SETTINGS, **changes})
    model, images = open_to_train(
        "timm:vit_tiny_patch16_224",
        data / "train.parquet",
        checkpoint=args.shared / "models" / "vit_tiny_patch16_224.safetensors",
        img_size=args.img_size,
        limit=args.limit,
        seed=args.seed,
        mean=0.5,
        std=0.5,
        crop_pct=1.0,
    )
    folder = args.out.with_name(args.out.name + ".training")
    found = secateur.train(
        model,
        images,
        settings=settings,
        folder=folder,
        on_log=lambda row: print(json.dumps(row), flush=True),
    )
    accuracy = secateur.evaluate(
        found.model, data / "test.parquet", limit=args.limit_eval, batch_size=128
    )
    found.accuracy["pruned"] = accuracy
    found.save(args.out)
    shutil.rmtree(folder)
    print(f"test top-1 {accuracy.top1:.2f} ± {accuracy.stderr:.2f} on {accuracy.n} images")


def report(args: argparse.Namespace) -> None:
    """The page of results, the log and the curve, from what was saved."""
    record = json.loads((args.out / "training.json").read_text(encoding="utf-8"))
    told, test = record["training"], record["accuracy"]["pruned"]
    lines = [json.dumps(row) for row in told["history"]]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "cifar_reference.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    curve(told, RESULTS / "cifar_reference.svg")
    scores = [
        (str(s["step"]), "yes" if s["averaged"] else "no", f"{100 - s['values']['error']:.2f}")
        for s in told["scores"]
    ]
    words = f"--epochs {args.epochs:g} --threads {args.threads} --seed {args.seed}"
    words += f" --limit {args.limit}" if args.limit else ""
    words += f" --limit-eval {args.limit_eval}" if args.limit_eval else ""
    words += f" --img-size {args.img_size}" if args.img_size != IMAGE_SIZE else ""
    words += f" --precision {args.precision}" if args.precision != "no" else ""
    rate = sum(row["images_per_second"] for row in told["history"]) / len(told["history"])
    environment = record["environment"]
    write_page(
        "cifar_reference",
        "\n\n".join(
            [
                "# The dense CIFAR-10 reference",
                f"ViT-Tiny/16 pretrained on ImageNet, fine-tuned at {args.img_size} px: "
                f"{record['params']['dense']:,} parameters, {record['macs']['dense']:,} MACs.",
                f"Test accuracy **{test['top1']:.2f} ± {test['stderr']:.2f} %** on {test['n']:,} "
                f"images after {told['budget']} ({told['steps']} steps of "
                f"{told['settings']['batch_size']}) on {told['images']:,} training images; "
                f"{told['seconds'] / 60:.0f} minutes at {rate:.0f} images a second on "
                f"{environment['device']} with {environment['threads']} thread(s). The ± is the "
                "standard error; one seed. The test images were used once, afterwards.",
                "![loss and held-out accuracy](cifar_reference.svg)",
                "Accuracy on the held-out training images, by which the weights were chosen, in %:",
                markdown(("step", "running average", "top-1"), scores),
                "The whole log: [cifar_reference.jsonl](cifar_reference.jsonl).",
                f"## Reproduce\n\n```\npython benchmarks/cifar_reference.py {words}\n```",
                f"{versions('accelerate')}. Seed {args.seed}.",
            ]
        ),
    )


def curve(told: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Training loss and held-out accuracy over the steps, as SVG."""
    history, scores = told["history"], told["scores"]
    lines = [
        Line(
            name="training",
            x=tuple(row["step"] for row in history),
            y=tuple(row["loss"] for row in history),
            colour="stem",
            width=1.4,
            dots=False,
        )
    ]
    judged = []
    for averaged, name, colour in ((False, "weights", "qk"), (True, "running average", "vo")):
        rows = [s for s in scores if s["averaged"] is averaged and s["step"] > 0]
        judged.append(
            Line(
                name=name,
                x=tuple(row["step"] for row in rows),
                y=tuple(100 - row["values"]["error"] for row in rows),  # type: ignore[index]
                colour=colour,
                symbol="square" if averaged else "circle",
            )
        )
    steps = Axis(title="step", low=0, high=history[-1]["step"])
    panels = [
        ("Training loss (smoothed labels)", Chart(x=steps, y=Axis(), marks=tuple(lines))),
        ("Top-1 on held-out images, %", Chart(x=steps, y=Axis(), marks=tuple(judged))),
    ]
    path.write_text(file_svg(panels, 780), encoding="utf-8")


if __name__ == "__main__":
    main()
