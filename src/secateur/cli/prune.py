"""`secateur prune`: observe, weigh, plan, cut, measure and save."""

import shlex
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, is_first_process, progress_bar, verb
from secateur.cli.options import (
    DATA_HELP,
    IMAGES,
    DataOptions,
    HostOptions,
    MachineOptions,
    Model,
    Overwrite,
    UnitOptions,
    names,
    open_model,
    refuse_missing_images,
    use_threads,
    widths,
)

if TYPE_CHECKING:
    from secateur.verbs.result import Result

PRUNING = "Pruning"


def _shipped(room: str) -> str:
    """The names of presets or recipes, found without importing anything."""
    folder = files("secateur") / room
    return ", ".join(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions(UnitOptions):
    """What to remove and how."""

    preset: Annotated[
        str | None,
        typer.Option(
            help=f"A method: {_shipped('presets')}, or a YAML file. Without it, the recommended "
            "one.",
            rich_help_panel=PRUNING,
            show_default=False,
        ),
    ] = None
    repair: Annotated[
        str | None,
        typer.Option(
            help="Of what is left: none, mean, least_squares; else the preset's.",
            rich_help_panel=PRUNING,
            show_default=False,
        ),
    ] = None
    stand_in: Annotated[
        str | None,
        typer.Option(
            help="For dropped layers: nothing, mean, scalar, affine, linear, merge; else the "
            "preset's.",
            rich_help_panel=PRUNING,
            show_default=False,
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            help="Between outputs, where it decides: kl, mse, bce, cosine; else as suits the head.",
            rich_help_panel=PRUNING,
            show_default=False,
        ),
    ] = None
    polish: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Train briefly after the cut, without labels: '5min', '30s', '200 steps'. Off "
            "unless given.",
            rich_help_panel=PRUNING,
            show_default=False,
        ),
    ] = None
    effort: Annotated[
        str,
        typer.Option(
            help="Of the preset spectral: how many sizes it measures, quick or full.",
            rich_help_panel=PRUNING,
        ),
    ] = "full"
    allocation: Annotated[
        str | None,
        typer.Option(
            help="Of the budget: uniform, ranking, knapsack; else the preset's.",
            rich_help_panel=PRUNING,
            show_default=False,
        ),
    ] = None


@verb
def prune(
    model: Model,
    data: Annotated[str, typer.Option(help=f"Calibration images. {DATA_HELP}")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to save the smaller model.")],
    options: PruneOptions,
    host: HostOptions,
    images: DataOptions,
    machine: MachineOptions,
    budget: Annotated[
        str | None,
        typer.Option(
            help="What is kept: '50% macs', '3M params', '2.0 GMACs', '50% qk, 70% hidden', "
            "'6.5 ms', '2x faster'; or removed: 'drop 4 attention', 'drop 25% blocks'.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_NAME",
            help=f"Sizes layer by layer instead of a budget: YAML, JSON, or {_shipped('recipes')}.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Calibration images to use; 0 for all.", rich_help_panel=IMAGES)
    ] = 512,
    eval_data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images on which dense and pruned model are evaluated.",
            rich_help_panel=IMAGES,
            show_default=False,
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time dense and pruned model in turns.")
    ] = True,
    overwrite: Overwrite = False,
) -> Answer:
    """Make a model smaller, within a budget, and save it with a report.

    DIR holds spec.json, model.safetensors, README.md and report.html.
    """
    from secateur.methods.task import Options, check_words, parse_groups
    from secateur.presets import DEFAULT
    from secateur.storage.save import check_out
    from secateur.verbs.prune import prune as run

    check_out(out, overwrite=overwrite)
    align, minimum = widths("--align", options.align), widths("--min-width", options.min_width)
    preset, groups = options.preset or DEFAULT, names(options.groups)
    parse_groups(groups or [])
    check_words(
        Options(
            budget=budget,
            recipe=recipe,
            align={group: align[group] for group in parse_groups(list(align))},
            minimum={group: minimum[group] for group in parse_groups(list(minimum))},
            preset=preset,
            repair=options.repair,
            stand_in=options.stand_in,
            loss=options.loss,
            allocation=options.allocation,
            effort=options.effort,
            polish=options.polish,
            runtime=options.runtime,
            latency_batch=options.latency_batch,
        )
    )
    refuse_missing_images(data, eval_data)
    use_threads(machine)
    device = machine.check()
    opened = open_model(model, host, device)
    with progress_bar() as progress:
        result = run(
            opened,
            data,
            budget,
            recipe=recipe,
            preset=preset,
            groups=groups,
            protect=names(options.protect) or (),
            repair=options.repair,
            stand_in=options.stand_in,
            loss=options.loss,
            allocation=options.allocation,
            align=align,
            minimum=minimum,
            seed=images.seed,
            batch_size=images.batch_size,
            limit=limit or None,
            workers=images.workers,
            skip_unreadable=images.skip_unreadable,
            eval_images=eval_data,
            latency=latency,
            effort=options.effort,
            polish=options.polish,
            runtime=options.runtime,
            latency_batch=options.latency_batch,
            progress=progress,
        )
    result.command = "secateur " + shlex.join(sys.argv[1:])
    replaced = result.save(out, overwrite=overwrite) if is_first_process() else None
    return answer(result, out, replaced)


def answer(result: "Result", out: Path, replaced: str | None, **more: object) -> Answer:
    """A saved result and what it replaced, for machines and for people."""
    from rich.console import Console

    from secateur.cli.tables import show_replaced, show_result

    record = result.record()
    data = {
        "out": str(out),
        "replaced": replaced,
        "preset": record["preset"],
        "budget": record["budget"],
        "target": record["target"],
        "macs": record["macs"],
        "params": record["params"],
        "seconds": sum(result.seconds.values()),
        "stages": record["seconds"],
        "accuracy": record["accuracy"],
        "latency": record["latency"],
        "latency_rounds": record["latency_rounds"],
        "polish": record["polish"],
        "data": record["data"],
        "notes": record["notes"],
        **more,
    }

    def show(console: Console) -> None:
        show_result(console, result)
        show_replaced(console, replaced)
        console.print(f"Saved to {out}; open {out / 'report.html'}.")

    return Answer(data=data, show=show)
