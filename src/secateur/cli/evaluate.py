"""`secateur evaluate`: how well a model classifies, and how near it is to a reference."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from secateur.cli.common import Answer, verb
from secateur.cli.options import (
    DATA_HELP,
    MachineOptions,
    Model,
    ReferenceOptions,
    open_model,
    refuse_missing_images,
)
from secateur.request.parts import ModelPart
from secateur.request.say import Say
from secateur.verbs.requests import FEATURES, MetricsRequest

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from secateur.measurement.accuracy import Accuracy
    from secateur.verbs.load import DataUsed
    from secateur.verbs.metrics import Found as Metrics


@verb
def evaluate(
    model: Model,
    data: Annotated[str, Say(f"Images to score. {DATA_HELP}")],
    request: MetricsRequest,
    host: ModelPart,
    machine: MachineOptions,
    other: ReferenceOptions,
    features_only: Annotated[
        bool,
        Say("The labels are not those of the model's head: measure only --metrics.", FEATURES),
    ] = False,
) -> Answer:
    """Measure accuracy, agreement and KL with a reference, and metrics of the features."""
    from secateur.data.preprocessing import Preprocessing
    from secateur.measurement.metrics import chosen

    refuse_missing_images(data, request.train)
    device = machine.use()
    opened = open_model(model, host, device)
    beside, note = _reference(opened, other, host, device)
    asked = replace(request, reference=beside)
    chosen(asked.metrics, train=asked.train is not None, reference=beside is not None)
    found, measured, used = _measure(opened, data, asked, features_only)
    prepared = Preprocessing.of(opened).to_json()
    return Answer(
        data={
            **found.to_json(),
            "n": used.images,
            "metrics": measured,
            "unreadable": list(used.unreadable),
            "repeated": used.repeated,
            "model": model,
            "data": used.source,
            "train_data": request.train,
            "fingerprint": used.fingerprint,
            "preprocessing": prepared,
            "note": note,
        },
        show=lambda console: _show(console, model, found, measured, used, note, prepared),
    )


def _measure(
    opened: "nn.Module", data: str, request: MetricsRequest, features_only: bool
) -> "tuple[Accuracy, Metrics, DataUsed]":
    """Accuracy, where the model has a head for these images, and the metrics named."""
    from secateur.errors import UserError
    from secateur.measurement.accuracy import NOTHING
    from secateur.models.family import read
    from secateur.verbs.evaluate import score
    from secateur.verbs.load import open_data
    from secateur.verbs.metrics import check_classes, evaluate_metrics

    headless = features_only or read(opened).num_classes == 0
    if headless and not request.metrics:
        raise UserError(
            "without a head there is no accuracy; name some --metrics, such as knn or retrieval."
        )
    read_as = partial(open_data, opened, own_labels=headless)
    batches, used = read_as(data, **request.reading())
    train = None
    if request.train is not None:
        reading = request.reading() | {"limit": request.train_limit}
        train, learnt = read_as(request.train, **reading)
        check_classes(used.classes, learnt.classes)
    found, measured = NOTHING, dict[str, dict[str, object]]()
    if request.metrics:
        measured = evaluate_metrics(opened, batches, **vars(replace(request, train=train)))
    if not headless:
        found = score(opened, batches, "evaluate", request.progress, reference=request.reference)
    return found, measured, used


def _reference(
    model: "nn.Module", other: ReferenceOptions, host: ModelPart, device: str
) -> tuple["nn.Module | None", str]:
    """The model to compare with, and what to say about it."""
    from secateur.storage.reference import dense_of

    if (name := other.reference) is not None:
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
    for told in used.notes():
        console.print(told)
    console.print(note[0].upper() + note[1:])
    console.print("Images: " + ", ".join(f"{key} {value}" for key, value in prepared.items()) + ".")
