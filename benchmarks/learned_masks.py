"""Learned masks against baselines at equal training: 70 and 90 % fewer parameters, several seeds.

`python benchmarks/learned_masks.py --smoke` compares on the bundled digits model and writes
docs/results/learned_masks_digits.md. Without --smoke the dense model is that of
benchmarks/cifar_reference.py, or another directory (--dense), the images are CIFAR-10 and the page
is docs/results/learned_masks.md; with another optimizer (--optimizer, --learning-rate,
--batch-size), a page apart for every length of training, and others with mixed images (--mix) and
with a longer or shorter search (--search-share).
`--validate` trains on four fifths of the training images and scores the others: settings are
chosen so, never on test images. `--select NAME` does it for one set of settings of CANDIDATES and
writes docs/results/learned_masks_settings.md, with --limit a page apart.

Cells are kept in benchmarks/out/ as they are done; a run that was stopped goes on, within a cell
from its checkpoint. `--only NAME` measures some methods only. Several processes train together
when started with `ACCELERATE_USE_CPU=true torchrun --nproc-per-node N`.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from _common import HERE, Row, Store
from _learned_masks_candidates import CANDIDATES, PRUNED
from _learned_masks_page import page, settings_page
from _learned_masks_recipe import Recipe, arguments, other_optimizer, recipes, training
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import secateur
from secateur.data.images import ImageSet, open_images
from secateur.data.preprocessing import Preprocessing
from secateur.masks.granularity import granularities
from secateur.masks.settings import LearnSettings
from secateur.measurement.accuracy import predict, summarize
from secateur.measurement.counting import counted
from secateur.models.family import read
from secateur.training.heal_and_train import HealSettings
from secateur.training.images.held_out import part_of
from secateur.training.settings import OptimizerSettings
from secateur.verbs.learned_result import Learned
from secateur.verbs.load import give_preprocessing_
from secateur.verbs.training_result import Trained

AGAIN = 0.5
"""Times the learning rate of a second training."""
STAGE = 0.1
"""Share of the epochs of every stage but the last."""
BUDGETS = (30, 10)
"""Percent of the dense parameters that may stay."""


class Bench:
    """The dense model and images of a recipe, opened when first used."""

    def __init__(self, recipe: Recipe, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        self.recipe, self.args = recipe, args

    @cached_property
    def dense(self) -> nn.Module:
        if self.recipe.name == "learned_masks" and not (Path(self.recipe.dense)).is_dir():
            raise SystemExit(
                f"no dense model at {self.recipe.dense}: make it with cifar_reference.py, or name "
                "another with --dense"
            )
        return secateur.load(self.recipe.dense)

    @cached_property
    def images(self) -> tuple[ImageSet, ImageSet]:
        """To train on and to score."""
        preprocessing, classes = Preprocessing.of(self.dense), read(self.dense).num_classes
        train = open_images(
            self.recipe.train, preprocessing, limit=self.args.limit, num_classes=classes
        )
        if not self.args.validate:
            test = open_images(self.recipe.test, preprocessing, num_classes=classes)
            return train, test
        held = set(range(0, len(train), 5))
        rest = [i for i in range(len(train)) if i not in held]
        return _part(train, rest), _part(train, sorted(held))

    def score(self, model: nn.Module) -> Row:
        """Accuracy, parameters and MACs."""
        _, test = self.images
        loader = torch.utils.data.DataLoader(test, 256)
        cost = counted(model, read(self.dense).input_size)
        scores = summarize(predict(model, list(loader)))
        return {
            "top1": scores.top1,
            "stderr": scores.stderr,
            "n": scores.n,
            "params": cost.params,
            "macs": cost.macs,
        }

    def folder(self, *names: str) -> Path:
        """Where the checkpoints of a cell lie: apart for every way to train."""
        way = training(self.recipe, self.args).replace("/", "-")
        way += "-validation" if self.args.validate else ""
        return HERE / "out" / self.recipe.name / way / "-".join(names)

    def learn(
        self,
        model: nn.Module,
        budget: str,
        seed: int,
        epochs: float,
        cell: str,
        **changes: Any,
    ) -> Learned:
        """Learn masks on any model that was cut out of the dense one, which teaches it."""
        words = ("sharing", "gates", "criterion", "groups")
        options = {k: v for k, v in changes.items() if k in words}
        settings = {"distil": self.recipe.distil} | self.recipe.common
        if self.args.search_share is not None:
            settings["search_share"] = self.args.search_share
        apart = {*options, "rate", "algorithm"}
        settings |= {k: v for k, v in changes.items() if k not in apart}
        settings |= {"refit": False} if self.args.no_refit else {}
        given: OptimizerSettings = settings["optimizer"]
        settings["optimizer"] = given.model_copy(
            update={
                "name": changes.get("algorithm", given.name),
                "learning_rate": given.learning_rate * changes.get("rate", 1.0),
            }
        )
        return secateur.learn(
            model,
            self.images[0],
            budget,
            reference=self.dense,
            settings=LearnSettings(epochs=epochs, seed=seed, held_out=0.05, **settings),
            folder=self.folder(cell, str(seed)),
            **options,
        )

    def learned(self, percent: int, seed: int, cell: str, **changes: Any) -> Row:
        """Learn masks and score."""
        epochs, budget = self.recipe.epochs, f"{percent}% params"
        found = self.learn(self.dense, budget, seed, epochs, f"{cell}-{percent}", **changes)
        told = found.record()["learning"]
        kept = ("masked_percent", "removed_percent", "search_end", "steps")
        return {**self.score(found.model), **{key: told[key] for key in kept}}

    def healed(
        self, model: nn.Module, seed: int, epochs: float, cell: str, rate: float = 1.0
    ) -> Trained:
        """Train any model with the same objective and loop; `rate` times the learning rate."""
        given: OptimizerSettings = self.recipe.common["optimizer"]
        slower = given.model_copy(update={"learning_rate": given.learning_rate * rate})
        settings = HealSettings(
            epochs=epochs,
            seed=seed,
            distil=self.recipe.distil,
            held_out=0.05,
            **self.recipe.common | {"optimizer": slower},
        )
        return secateur.heal(
            model,
            self.images[0],
            reference=self.dense,
            settings=settings,
            folder=self.folder(cell, str(seed)),
        )

    def pruned(self, model: nn.Module, budget: str, seed: int) -> nn.Module:
        """The model within a budget of its own parameters, by the default method."""
        train, _ = self.images
        some = _part(train, [i * len(train) // 512 for i in range(512)])
        return secateur.prune(model, some, budget, seed=seed).model

    def stages(self, percent: int) -> Iterator[tuple[float, Callable[[nn.Module], str]]]:
        """For every stage the epochs, and the budget of what comes to it.

        Each removes the same share of what is there, so that the last meets the whole budget.
        """
        count = self.args.stages
        wanted = percent / 100 * read(self.dense).cost().params
        for left in range(count, 0, -1):

            def budget(model: nn.Module, left: int = left) -> str:
                share = (wanted / read(model).cost().params) ** (1 / left)
                return f"{math.floor(10_000 * share) / 100:g}% params"

            last = 1 - STAGE * (count - 1)
            yield (STAGE if left > 1 else last) * self.recipe.epochs, budget

    def told(self, found: Trained) -> Row:
        """The row of a trained model."""
        return {**self.score(found.model), "steps": {"tune": found.report.steps}}

    def small(self, percent: int, seed: int) -> nn.Module:
        """The dense model's architecture at the largest width within the budget, untrained."""
        dense = self.dense
        assert isinstance(dense, VisionTransformer)
        limit, heads = percent / 100 * read(dense).cost().params, dense.blocks[0].attn.num_heads
        torch.manual_seed(seed)
        for width in range(dense.embed_dim, 0, -heads):
            model = VisionTransformer(
                img_size=dense.patch_embed.img_size,
                patch_size=dense.patch_embed.patch_size,
                in_chans=read(dense).input_size[0],
                num_classes=dense.num_classes,
                embed_dim=width,
                depth=len(dense.blocks),
                num_heads=heads,
            )
            if sum(p.numel() for p in model.parameters()) <= limit:
                give_preprocessing_(model, Preprocessing.of(dense))
                return model.eval()
        raise SystemExit(f"no small model fits {percent} %")


def methods(bench: Bench) -> dict[str, Callable[[int, int], Row]]:
    """From percent and seed to a row, by name."""
    found: dict[str, Callable[[int, int], Row]] = {}

    def learned(name: str, **changes: Any) -> None:
        found[name] = lambda percent, seed: bench.learned(percent, seed, name, **changes)

    def in_stages(name: str, sharing: str) -> None:
        found[name] = lambda percent, seed: learned_in_stages(bench, percent, seed, sharing)

    for sharing in granularities.names():
        learned(f"learned, {sharing}", sharing=sharing)
    if bench.args.stages > 1:
        for sharing in granularities.names():
            in_stages(f"learned, {sharing} in {bench.args.stages} stages", sharing)
    learned("gates hard_concrete", gates="hard_concrete")
    learned("gates threshold", gates="threshold")
    learned("gates pit", gates="pit")
    plain: dict[str, Any] = {"axes": "given", "takeover": False, "refit": False}
    learned("movement", search="schedule", criterion="none", **plain)
    learned("group lasso", search="group_lasso", criterion="magnitude", **plain)
    learned("progressive zeroing", search="progressive", criterion="taylor", **plain)
    learned("one-shot taylor", search_share=0.0, criterion="taylor", **plain)
    learned("one-shot magnitude", search_share=0.0, criterion="magnitude", **plain)

    def again(percent: int, seed: int) -> Row:
        first, cell = (
            one_shot(bench, percent, seed),
            f"spectral-{percent}-again-{bench.args.again:g}",
        )
        return bench.told(bench.healed(first.model, seed, bench.args.again, cell, AGAIN))

    def scratch(percent: int, seed: int) -> Row:
        small, epochs = bench.small(percent, seed), bench.recipe.scratch_epochs
        return bench.told(bench.healed(small, seed, epochs, f"scratch-{percent}"))

    found[PRUNED] = lambda percent, seed: bench.told(one_shot(bench, percent, seed))
    if bench.args.again:
        found[f"one-shot spectral, {bench.args.again:g} epochs more"] = again
    if bench.args.stages > 1:
        found[f"spectral in {bench.args.stages} stages"] = lambda percent, seed: spectral_in_stages(
            bench, percent, seed
        )
    found["small model from scratch"] = scratch
    return found


def one_shot(bench: Bench, percent: int, seed: int) -> Trained:
    """Cut once by the default method and train."""
    small = bench.pruned(bench.dense, f"{percent}% params", seed)
    return bench.healed(small, seed, bench.recipe.epochs, f"spectral-{percent}")


def spectral_in_stages(bench: Bench, percent: int, seed: int) -> Row:
    """Cut by the default method and train, stage by stage."""
    model, steps = bench.dense, 0
    for stage, (epochs, budget) in enumerate(bench.stages(percent), 1):
        small = bench.pruned(model, budget(model), seed)
        cell = f"spectral-{percent}-stage-{stage}-of-{bench.args.stages}"
        found = bench.healed(small, seed, epochs, cell)
        model, steps = found.model, steps + found.report.steps
    return {**bench.score(model), "steps": {"tune": steps}}


def learned_in_stages(bench: Bench, percent: int, seed: int, sharing: str) -> Row:
    """Learn masks, remove and train, stage by stage."""
    model, steps = bench.dense, 0
    masked = read(model).cost().params
    for stage, (epochs, budget) in enumerate(bench.stages(percent), 1):
        cell = f"{sharing}-{percent}-stage-{stage}-of-{bench.args.stages}"
        found = bench.learn(model, budget(model), seed, epochs, cell, sharing=sharing)
        model, masked = found.model, found.compression.masked.params
        steps += sum(report.steps for report in found.phases.values())
    masked_percent = 100 * (1 - masked / read(bench.dense).cost().params)
    return {**bench.score(model), "masked_percent": masked_percent, "steps": {"all": steps}}


def main() -> None:
    """Measure what is missing, then write the page."""
    args = arguments().parse_args()
    args.validate = args.validate or bool(args.select)
    if args.select and args.search_share is not None:
        raise SystemExit("settings that are selected say their own search share: leave it out")
    recipe = recipes(args)
    bench = Bench(recipe, args)
    name = recipe.name + ("_validation" if args.validate else "")
    store = Store(name, argparse.Namespace(images="all", limit_eval=None, seed=args.seed))
    store.suffix = training(recipe, args)
    if args.select:
        if not args.report:
            select(bench, store)
        settings_page(recipe, store, args, BUDGETS, (*CANDIDATES, PRUNED), other_optimizer(args))
    elif not args.report:
        measure(bench, store)
    if not args.validate and os.environ.get("RANK", "0") == "0":
        file = recipe.name
        if other_optimizer(args):
            file += f"_{args.optimizer}_{recipe.epochs:g}_epochs"
        file += "_mixed" if args.mix and not args.smoke else ""
        if args.search_share is not None:
            file += f"_search_{args.search_share:g}"
        page(file, recipe, store, args, args.percent or BUDGETS, tuple(methods(bench)))


def select(bench: Bench, store: Store) -> None:
    """Judge settings by held-out training images."""
    for percent in bench.args.percent or BUDGETS:
        for name in bench.args.select:
            cell = f"select {name}"

            def run(cell: str = cell, name: str = name, percent: int = percent) -> Row:
                seed = bench.args.seed
                if name == PRUNED:
                    return bench.told(one_shot(bench, percent, seed))
                return bench.learned(percent, seed, cell, **CANDIDATES[name])

            store.run((cell, str(percent)), run)


def measure(bench: Bench, store: Store) -> None:
    """All cells that are not there yet."""
    args = bench.args
    store.run(("dense",), lambda: bench.score(bench.dense))
    for seed in range(args.seeds):
        for percent in args.percent or BUDGETS:
            for name, make in methods(bench).items():
                if args.only and name not in args.only:
                    continue

                def run(make: Any = make, percent: int = percent, seed: int = seed) -> Row:
                    start = time.perf_counter()
                    return {**make(percent, seed), "seconds": time.perf_counter() - start}

                store.run((name, str(percent), str(seed)), run)
        if not args.only or "dense, trained on" in args.only:
            store.run(
                ("dense, trained on", "100", str(seed)),
                lambda seed=seed: bench.told(
                    bench.healed(bench.dense, seed, bench.recipe.epochs, "dense")
                ),
            )


def _part(images: ImageSet, indices: list[int]) -> ImageSet:
    found = part_of(images, indices)
    assert isinstance(found, ImageSet)
    return found


if __name__ == "__main__":
    main()
