"""What learned_masks.py can be told, and how it trains: dense model, images, what methods share."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import HERE, parser
from _learned_masks_candidates import CANDIDATES, DISTIL, PRUNED

from secateur.training.distillation.objectives import DistilSettings
from secateur.training.settings import AugmentSettings, OptimizerSettings

ADAMW = ("adamw", 3e-4)
"""The optimizer and learning rate of the main page of CIFAR-10."""
BATCH = 64
"""Images of a step, on that page."""
MIXED = AugmentSettings(mixup=0.1, cutmix=1.0, mix_until=0.8)
"""Mixed as in short schedules of ResNet strikes back (arXiv 2110.00476, table 2); last, plain."""


def arguments() -> argparse.ArgumentParser:
    """All that the script can be told."""
    given = parser("Learned masks against baselines.")
    given.add_argument("--smoke", action="store_true", help="the bundled digits model")
    given.add_argument("--dense", type=Path, default=HERE / "out" / "cifar_reference")
    given.add_argument("--epochs", type=float, help="of every method together")
    given.add_argument(
        "--again", type=float, help="epochs of a second training of one-shot spectral"
    )
    given.add_argument(
        "--stages",
        type=int,
        default=1,
        choices=range(1, 10),
        help="also prune in so many stages, by spectral and by learned masks",
    )
    given.add_argument("--seeds", type=int, default=3)
    given.add_argument("--limit", type=int, help="training images")
    given.add_argument(
        "--views",
        type=int,
        help="augmented views of an image, which are kept with what the teacher says of them",
    )
    given.add_argument("--optimizer", default=ADAMW[0], help="one of timm's, for CIFAR-10")
    given.add_argument("--learning-rate", type=float, default=ADAMW[1], help="for CIFAR-10")
    given.add_argument("--batch-size", type=int, default=BATCH, help="for CIFAR-10")
    given.add_argument("--mix", action="store_true", help="mixup and cutmix, for CIFAR-10")
    given.add_argument("--no-refit", action="store_true", help="as before learn had a refit")
    given.add_argument(
        "--search-share", type=float, help="share of the epochs that masks are learned in"
    )
    given.add_argument("--precision", choices=("no", "bf16"), default="no")
    given.add_argument("--only", action="append", help="only these methods, by name")
    given.add_argument("--percent", type=int, action="append", help="budgets (default: 30 and 10)")
    given.add_argument("--validate", action="store_true", help="score a part of the training set")
    given.add_argument(
        "--select", action="append", choices=[*CANDIDATES, PRUNED], help="judge these settings"
    )
    return given


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A dense model, images, and the training that every method has."""

    name: str
    dense: str
    train: str
    test: str
    epochs: float
    scratch_epochs: float
    common: dict[str, Any]
    distil: DistilSettings = DISTIL


def recipes(args: argparse.Namespace) -> Recipe:
    """The digits, or CIFAR-10."""
    if args.smoke:
        return Recipe(
            name="learned_masks_digits",
            dense="digits_vit",
            train="digits/train",
            test="digits/test",
            epochs=args.epochs or 20,
            scratch_epochs=100 + (args.epochs or 20),
            common={
                "batch_size": 64,
                "optimizer": OptimizerSettings(learning_rate=1e-3, weight_decay=0.05),
                "augment": AugmentSettings(flip=False, least_area=0.8),
                "label_smoothing": 0.1,
                "ema": 0.99,
            },
        )
    data = args.shared / "data" / "cifar10"
    return Recipe(
        name="learned_masks",
        dense=str(args.dense),
        train=str(data / "train.parquet"),
        test=str(data / "test.parquet"),
        epochs=args.epochs or 10,
        scratch_epochs=args.epochs or 10,
        common={
            "batch_size": args.batch_size,
            "optimizer": OptimizerSettings(
                name=args.optimizer, learning_rate=args.learning_rate, weight_decay=0.05
            ),
            "augment": (MIXED if args.mix else AugmentSettings()).model_copy(
                update={"views": args.views}
            ),
            "label_smoothing": 0.1,
            "checks": 2,
            "precision": args.precision,
            "kept_views": None if args.views is None else HERE / "out" / "kept_views",
        },
        distil=DISTIL
        if args.views is None
        else DISTIL.model_copy(update={"answers": HERE / "out" / "teacher_answers"}),
    )


def training(recipe: Recipe, args: argparse.Namespace) -> str:
    """How every method is trained, in short: what cells and checkpoints are told apart by."""
    parts = [f"e{recipe.epochs:g}"]
    if args.limit:
        parts.append(f"n{args.limit}")
    parts += ["norefit"] if args.no_refit else []
    parts += [f"search{args.search_share:g}"] if args.search_share is not None else []
    if not args.smoke:
        parts += [args.precision] if args.precision != "no" else []
        parts += [f"views{args.views}"] if args.views is not None else []
        parts += [f"{args.optimizer}{args.learning_rate:g}"] if other_optimizer(args) else []
        parts += [f"b{args.batch_size}"] if args.batch_size != BATCH else []
        parts += ["mixed"] if args.mix else []
    return "/".join(parts)


def other_optimizer(args: argparse.Namespace) -> bool:
    """Whether CIFAR-10 is trained on otherwise than on its main page, and has a page apart."""
    given = args.optimizer, args.learning_rate, args.batch_size
    return not args.smoke and given != (*ADAMW, BATCH)
