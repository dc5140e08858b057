"""`secateur evaluate`: how well a model classifies, and how near it is to a reference."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.common import Answer, progress_bar, verb
from secateur.cli.options import (
    DATA_HELP,
    IMAGES,
    DataOptions,
    HostOptions,
    MachineOptions,
    Model,
    ReferenceOptions,
    names,
    open_model,
    refuse_missing_images,
    use_threads,
)

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from secateur.measurement.accuracy import Accuracy
    from secateur.verbs.load import DataUsed
    from secateur.verbs.metrics import Found as Metrics

FEATURES = "Features"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """What is measured of the features before the classifier."""

    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Of the features before the classifier: knn, linear_probe, retrieval, features.",
            rich_help_panel=FEATURES,
            show_default=False,
        ),
    ] = None
    train_data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images that knn and linear_probe learn from.",
            rich_help_panel=FEATURES,
            show_default=False,
        ),
    ] = None
    train_limit: Annotated[
        int, typer.Option(help="How many of them; 0 for all.", rich_help_panel=FEATURES)
    ] = 0
    features_only: Annotated[
        bool,
        typer.Option(
            "--features-only",
            help="The labels are not those of the model's head: measure only --metrics.",
            rich_help_panel=FEATURES,
        ),
    ] = False


@verb
def evaluate(
    model: Model,
    data: Annotated[str, typer.Option(help=f"Images to score. {DATA_HELP}")],
    host: HostOptions,
    images: DataOptions,
    machine: MachineOptions,
    features: FeatureOptions,
    other: ReferenceOptions,
    limit: Annotated[
        int, typer.Option(help="Images to score; 0 for all.", rich_help_panel=IMAGES)
    ] = 0,
) -> Answer:
    """Measure accuracy, agreement and KL with a reference, and what features are good for."""
    from secateur.data.preprocessing import Preprocessing
    from secateur.measurement.metrics import chosen

    refuse_missing_images(data, features.train_data)
    use_threads(machine)
    device = machine.check()
    opened = open_model(model, host, device)
    beside, note = _reference(opened, other, host, device)
    which = names(features.metrics) or []
    chosen(which, train=features.train_data is not None, reference=beside is not None)
    found, measured, used = _measure(opened, beside, data, limit, features, which, images)
    prepared = Preprocessing.of(opened).to_json()
    return Answer(
        data={
            **found.to_json(),
            "n": used.images,
            "metrics": measured,
            "unreadable": list(used.unreadable),
            "model": model,
            "data": used.source,
            "train_data": features.train_data,
            "fingerprint": used.fingerprint,
            "preprocessing": prepared,
            "note": note,
        },
        show=lambda console: _show(console, model, found, measured, used, note, prepared),
    )


def _measure(
    opened: "nn.Module",
    beside: "nn.Module | None",
    data: str,
    limit: int,
    features: FeatureOptions,
    which: list[str],
    images: DataOptions,
) -> "tuple[Accuracy, Metrics, DataUsed]":
    """Accuracy, where the model has a head for these images, and the metrics named."""
    from secateur.errors import UserError
    from secateur.measurement.accuracy import NOTHING
    from secateur.models.family import read
    from secateur.verbs.evaluate import score
    from secateur.verbs.load import open_data
    from secateur.verbs.metrics import check_classes, evaluate_metrics

    headless = features.features_only or read(opened).num_classes == 0
    if headless and not which:
        raise UserError(
            "without a head there is no accuracy; name some --metrics, such as knn or retrieval."
        )
    read_as = partial(
        open_data,
        opened,
        seed=images.seed,
        batch_size=images.batch_size,
        workers=images.workers,
        skip_unreadable=images.skip_unreadable,
        own_labels=headless,
    )
    batches, used = read_as(data, limit=limit or None)
    train = None
    if features.train_data is not None:
        train, learnt = read_as(features.train_data, limit=features.train_limit or None)
        check_classes(used.classes, learnt.classes)
    found, measured = NOTHING, dict[str, dict[str, object]]()
    with progress_bar() as progress:
        if which:
            measured = evaluate_metrics(
                opened,
                batches,
                which,
                train=train,
                reference=beside,
                seed=images.seed,
                progress=progress,
            )
        if not headless:
            found = score(opened, batches, "evaluate", progress, reference=beside)
    return found, measured, used


def _reference(
    model: "nn.Module", other: ReferenceOptions, host: HostOptions, device: str
) -> tuple["nn.Module | None", str]:
    """The model to compare with, and what to say about it."""
    from secateur.storage.reference import dense_of

    if (name := other.name) is not None:
        own = replace(host, checkpoint=other.reference_checkpoint, num_classes=None)
        return open_model(name, own, device), f"reference: {name}."
    return dense_of(model)


def _show(
    console: "Console",
    model: str,
    found: "Accuracy",
    measured: "Metrics",
    used: "DataUsed",
    note: str,
    prepared: dict[str, object],
) -> None:
    from secateur.cli.tables import plain_table, share, top1
    from secateur.verbs.load import unreadable_note

    table = plain_table(model, f"{used.images} images")
    if found.n:
        table.add_row("top-1", top1(found))
        table.add_row("top-5", share(found.top5))
    if found.kl is not None:
        table.add_row("agreement with the reference", share(found.agreement))
        table.add_row("KL from the reference", f"{found.kl:.4f} nats")
    if found.squared_error is not None:
        error = f"{100 * found.squared_error:.3g} % of its variance"
        table.add_row("squared difference from the reference", error)
    for metric, values in measured.items():
        for name, value in values.items():
            if name != "n":
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                table.add_row(f"{metric}: {name}", "–" if value is None else text)
    console.print(table)
    if found.n and found.top1 is None:
        console.print("The images have no labels, so there is no accuracy.")
    if used.unreadable:
        console.print(unreadable_note(used.unreadable))
    console.print(note[0].upper() + note[1:])
    console.print("Images: " + ", ".join(f"{key} {value}" for key, value in prepared.items()) + ".")
