"""The pages of learned_masks.py: what each method keeps of the accuracy, how settings compare."""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _common import Row, Store, table, versions, write_page
from _learned_masks_candidates import PRUNED


def page(
    file: str,
    recipe: Any,
    store: Store,
    args: argparse.Namespace,
    budgets: Sequence[int],
    methods: Sequence[str],
) -> None:
    """Write the page from the store; cells that are missing are told."""
    dense = store.get("dense")
    if dense is None or dense["status"] != "ok":
        raise SystemExit("the dense model was not measured yet")
    methods = [name for name in methods if not args.only or name in args.only]
    smoke = recipe.name.endswith("digits")
    where = "the bundled digits model" if smoke else "CIFAR-10"
    parts = [
        f"# Learned masks on {where}"
        + (f", {recipe.epochs:g} epochs of {args.optimizer}" if file != recipe.name else "")
        + (", mixed images" if args.mix and not smoke else "")
        + (f", search of {100 * args.search_share:g} %" if args.search_share is not None else ""),
        _about(recipe, dense, smoke, "small model from scratch" in methods),
        _trained_on(store, args, dense),
    ]
    parts += _remarks(args, smoke)
    for percent in budgets:
        parts += [
            f"## {100 - percent} % fewer parameters",
            _table(store, args, methods, percent, dense),
        ]
    parts += [
        "`masked` is the share of masked parameters after the projection onto the budget, "
        "`removed` the share missing in the exported model, counted in its tensors; methods "
        "without masks have no `masked`. `±` is the standard error of the mean over seeds, which "
        f"contains neither the choice of test images ({dense['stderr']:.1f} points for the dense "
        "model, more for worse "
        "ones) nor that of the dense model, which is the same for all.",
        f"## Reproduce\n\n```\n{_command(file, recipe, args, smoke)}\n```",
        f"{versions('accelerate')}. Seeds 0 to {args.seeds - 1}.",
    ]
    write_page(file, "\n\n".join(parts))


def _remarks(args: argparse.Namespace, smoke: bool) -> list[str]:
    """What is special about the training of a page."""
    found: list[str] = []
    if args.mix and not smoke:
        found.append(
            "Images are mixed (mixup 0.1 or cutmix 1.0) in the first four fifths of every "
            "training, and the teacher's outputs are those for the mixed images."
        )
    if args.search_share is not None:
        found.append(
            f"Masks are learned in the first {100 * args.search_share:g} % of the epochs (without "
            "`--search-share`, a quarter); in the remaining ones the smaller model is trained."
        )
    if args.stages > 1:
        found.append(
            f"`in {args.stages} stages`: the same share of what is there is removed "
            f"{args.stages} times, by spectral or by learned masks, and the model is trained each "
            "time, a tenth of the epochs each but the last; all of them together are as many as "
            "the others train. The dense model teaches throughout."
        )
    if args.again:
        found.append(
            f"`{args.again:g} epochs more`: the result is trained for that many more epochs, from "
            "half the learning rate, so longer than all others."
        )
    return found


def _command(file: str, recipe: Any, args: argparse.Namespace, smoke: bool) -> str:
    """What measures a page again."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    together = f"ACCELERATE_USE_CPU=true torchrun --nproc-per-node {processes}"
    script = "python" if processes == 1 else together
    script += " benchmarks/learned_masks.py" + (" --smoke" if smoke else "")
    script += "" if smoke or args.precision == "no" else f" --precision {args.precision}"
    script += f" --views {args.views}" if args.views is not None and not smoke else ""
    if args.optimizer in file:
        script += f" --optimizer {args.optimizer} --learning-rate {args.learning_rate:g}"
        script += f" --batch-size {args.batch_size}"
    script += " --mix" if args.mix and not smoke else ""
    script += " --no-refit" if args.no_refit else ""
    if args.search_share is not None:
        script += f" --search-share {args.search_share:g}"
    script += f" --again {args.again:g}" if args.again else ""
    script += f" --stages {args.stages}" if args.stages > 1 else ""
    script += "".join(f" --percent {percent}" for percent in args.percent or ())
    only = "".join(f' \\\n    --only "{name}"' for name in args.only or ())
    script += f" --seeds {args.seeds} --epochs {recipe.epochs:g} --threads {args.threads}"
    return script + only


def _about(recipe: Any, dense: Row, smoke: bool, scratch: bool) -> str:
    epochs = f"{recipe.epochs:g} epochs"
    text = (
        f"Dense: {dense['params']:,} parameters, **{dense['top1']:.2f} %** top-1 on "
        f"{dense['n']:,} test images. Every method starts from it and trains {epochs} in the same "
        "loop, with the same images, augmentation, optimizer and objective (labels and the dense "
        "model's outputs, half each)."
    )
    if scratch and recipe.scratch_epochs > recipe.epochs:
        text += (
            f" The small model from scratch trains {recipe.scratch_epochs:g} epochs, as many as "
            "the dense one and the others together."
        )
    elif scratch:
        text += (
            " The small model from scratch trains as long as the others, but starts from random "
            "weights, without the pretraining of the dense one."
        )
    if smoke:
        text += (
            " On a tiny model and tiny images, these results test the implementation; they do not "
            "compare methods on models of practical size."
        )
    return text


def _trained_on(store: Store, args: argparse.Namespace, dense: Row) -> str:
    rows = [store.get("dense, trained on", "100", str(seed)) for seed in range(args.seeds)]
    found = [row["top1"] for row in rows if row is not None and row["status"] == "ok"]
    if not found:
        return "The dense model with the same additional training was not measured."
    return (
        f"The dense model with the same additional training: {_mean(found)} % ({len(found)} "
        "seeds), "
        f"{statistics.mean(found) - dense['top1']:+.2f} points."
    )


def _table(
    store: Store, args: argparse.Namespace, methods: Sequence[str], percent: int, dense: Row
) -> str:
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    for name in methods:
        cells = [store.get(name, str(percent), str(seed)) for seed in range(args.seeds)]
        found = [row for row in cells if row is not None and row["status"] == "ok"]
        if not found:
            told = next((row["status"] for row in cells if row is not None), None)
            if told is None:
                missing.append(name)
            else:
                rows.append((name, told, "", "", "", "", ""))
            continue
        top1 = [row["top1"] for row in found]
        masked = [row["masked_percent"] for row in found if "masked_percent" in row]
        rows.append(
            (
                name,
                f"{statistics.mean(masked):.1f}" if masked else "",
                *(_removed(found, dense, what) for what in ("params", "macs")),
                _mean(top1),
                f"{statistics.mean(top1) - dense['top1']:+.2f}",
                str(len(found)),
            )
        )
    rows.sort(key=lambda row: -float(row[5]) if row[5] else 1e9)
    head = ("method", "masked, %", "removed, %", "MACs removed, %", "top-1, %", "points", "seeds")
    shown = table(head, rows)
    return shown + (f"\n\nNot run: {'; '.join(missing)}." if missing else "")


def _removed(found: Sequence[Row], dense: Row, what: str) -> str:
    """Percent of the dense model that is gone, mean over seeds."""
    return f"{100 * (1 - statistics.mean(row[what] for row in found) / dense[what]):.1f}"


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def settings_page(
    recipe: Any,
    store: Store,
    args: argparse.Namespace,
    budgets: Sequence[int],
    names: Sequence[str],
    other_optimizer: bool,
) -> None:
    """Write the page of settings that were judged on held-out training images.

    With an `other_optimizer` than the main page has, the page is one apart.
    """
    found = {
        (name, percent): row
        for name in names
        for percent in budgets
        if (row := store.get(f"select {name}", str(percent))) is not None and row["status"] == "ok"
    }
    shown = [name for name in names if any((name, percent) in found for percent in budgets)]
    rows = [
        (
            name,
            *(
                f"{row['top1']:.1f} ± {row['stderr']:.1f}"
                if (row := found.get((name, percent)))
                else ""
                for percent in budgets
            ),
        )
        for name in shown
    ]
    if not rows:
        raise SystemExit("no settings were judged yet")
    images = next(iter(found.values()))["n"]
    length = f"{recipe.epochs:g} epoch" + ("" if recipe.epochs == 1 else "s")
    head = ("settings", *(f"top-1 at {100 - percent} % fewer, %" for percent in budgets))
    commands = _commands(args, found, names, other_optimizer)
    write_page(
        f"{recipe.name}_settings"
        + (f"_{args.optimizer}" if other_optimizer else "")
        + (f"_{args.limit}_images" if args.limit else ""),
        "\n\n".join(
            [
                "# Settings of learned masks, judged on training images",
                f"`learned, common_count` on CIFAR-10 with other settings; {length}"
                + (f" of {args.optimizer} at {args.learning_rate:g}" if other_optimizer else "")
                + " over four "
                f"fifths of {args.limit or 'all'} training images; top-1 on {images:,} others "
                "of them, ± its standard error. All use the same images, so differences have a "
                "smaller error. No test image was used. One seed."
                + (f" `{PRUNED}` is `prune` and then the same training." * (PRUNED in shown)),
                table(head, rows),
                "## Reproduce\n\n```\n" + "\n".join(commands) + "\n```",
                f"{versions('accelerate')}. Seed {args.seed}.",
            ]
        ),
    )


def _commands(
    args: argparse.Namespace,
    found: Mapping[tuple[str, int], Row],
    names: Sequence[str],
    other_optimizer: bool,
) -> list[str]:
    """What measures the settings that were found, a command for each budget."""
    keys = ["views", "limit", "epochs"]
    keys += ["optimizer", "learning-rate", "batch-size"] * other_optimizer
    values = {key: getattr(args, key.replace("-", "_")) for key in keys}
    if args.precision != "no":
        values = {"precision": args.precision} | values
    command = "python benchmarks/learned_masks.py" + " --no-refit" * args.no_refit
    for key, value in values.items():
        if value is not None:
            command += f" --{key} {value:g}" if isinstance(value, float) else f" --{key} {value}"
    return [
        f"{command} --percent {percent}"
        + "".join(f' \\\n    --select "{name}"' for name in names if (name, percent) in found)
        for percent in dict.fromkeys(percent for _, percent in found)
    ]
