"""The page of a training run; its curves of loss and held-out score, which learned models share."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from secateur.report.advice import after_training, difference, error_words
from secateur.report.drawing.chart import Axis, Chart, Line, Rule
from secateur.report.figures import Chapter, Tile, figure_html, page
from secateur.report.record import AccuracyRecord, FitRecord, TrainingRecord
from secateur.report.run_tables import cost_tile
from secateur.report.words import NBSP, duration, percent, plural, points

TITLES = {"heal": "healed", "train": "fine-tuned"}
NOT_TERMS = {"step", "share", "loss", "learning_rate", "images_per_second", "seconds_left"}
UNITS = {"kl": "held-out KL, nats"}
NOUNS = {"kl": "KL"}


def render_training(record: Mapping[str, object], verb: str) -> str:
    """The whole page as HTML that opens offline, from `Trained.record()` as plain data.

    Raises pydantic.ValidationError for anything that is no such record.
    """
    run = TrainingRecord.model_validate(record)
    return page(
        "training.html.j2",
        run=run,
        verb=verb,
        title=f"{run.model or run.reference or 'A vision transformer'}, {TITLES.get(verb, verb)}",
        lead=_lead(run, verb),
        tiles=_tiles(run),
        advice=after_training(verb, run.accuracy, run.training.best_step, run.training.steps),
        curves=curves({verb: run.training}),
        comparisons=_comparisons(run),
        provenance=_provenance(run),
    )


def curves(fits: Mapping[str, FitRecord]) -> list[Chapter]:
    """Loss and held-out score of every phase that has them, with one sentence on how to read it."""
    found = []
    for phase, fit in fits.items():
        for chart, name, about in (
            (loss_figure(fit), "loss", "Mean over the steps since the last point."),
            (kept_figure(fit), "cost kept", "What the masks keep, and what the schedule asks."),
            (score_figure(fit), "held-out score", _best(fit)),
        ):
            if chart is not None:
                title = f"{phase[:1].upper()}{phase[1:].replace('_', ' ')}: {name}"
                label = f"{name} over training steps"
                found.append(
                    Chapter(title=title, about=about, figure=figure_html(chart, label=label))
                )
    return found


def loss_figure(fit: FitRecord) -> Chart | None:
    """Loss of the training images and its terms per step; None without a log."""
    rows = [row for row in fit.history if "loss" in row]
    if not rows:
        return None
    terms = sorted({key for row in rows for key in row if _is_term(key)})
    colours = ("qk", "vo", "hidden", "heads", "attention", "dropped")
    lines = [_history_line(rows, "loss", "ink", width=2.2)]
    if len(terms) > 1:
        lines += [
            _history_line(rows, term, colours[i % len(colours)], width=1.2)
            for i, term in enumerate(terms)
        ]
    positive = all(y is None or y > 0 for line in lines for y in line.y)
    return Chart(
        height=300,
        x=Axis(title="step", low=0, form="count"),
        y=Axis(title="loss", scale="log" if positive else "linear"),
        marks=tuple(lines),
    )


def kept_figure(fit: FitRecord) -> Chart | None:
    """Cost of the masked model and its schedule per step, in percent; None without masks."""
    rows = [row for row in fit.history if "target_percent" in row]
    if not rows:
        return None
    names = (("target_percent", "muted", 5.0), ("kept_percent", "attention", 2.0))
    return Chart(
        height=240,
        x=Axis(title="step", low=0, form="count"),
        y=Axis(title="% of the dense model"),
        marks=tuple(
            _history_line(rows, key, colour, width=width)
            for key, colour, width in names
            if any(key in row for row in rows)
        ),
    )


def score_figure(fit: FitRecord) -> Chart | None:
    """What the held-out images said per step, of the weights and of their average."""
    if len(fit.scores) < 2:
        return None
    name = next(iter(fit.scores[0].values))
    lines = []
    for averaged, title, colour in ((False, "weights", "qk"), (True, "running average", "vo")):
        own = [score for score in fit.scores if score.averaged is averaged and name in score.values]
        if not own:
            continue
        lines.append(
            Line(
                name=title,
                x=tuple(float(score.step) for score in own),
                y=tuple(score.values[name] for score in own),
                colour=colour,
                symbol="square" if averaged else "circle",
                hover=tuple(
                    "\n".join(
                        [f"step {score.step}, {title}"]
                        + [f"{_words(key)} {value:.4g}" for key, value in score.values.items()]
                    )
                    for score in own
                ),
            )
        )
    start = fit.scores[0].values[name]
    return Chart(
        height=300,
        x=Axis(title="step", low=0, form="count"),
        y=Axis(title=UNITS.get(name, f"held-out {_words(name)}")),
        marks=tuple(lines),
        rules=(Rule(y=start, label="before training"),),
    )


def _history_line(
    rows: Sequence[Mapping[str, float]], key: str, colour: str, *, width: float
) -> Line:
    return Line(
        name=_words(key),
        x=tuple(row["step"] for row in rows),
        y=tuple(row.get(key) for row in rows),
        colour=colour,
        width=width,
        size=3,
        dots=len(rows) <= 60,
        hover=tuple(f"step {row['step']:.0f}\n{_words(key)} {row.get(key, 0):.4g}" for row in rows),
    )


def _is_term(key: str) -> bool:
    return key not in NOT_TERMS and not key.startswith("held_out") and not key.endswith("_percent")


def _words(key: str) -> str:
    return NOUNS.get(key, key.replace("_", " "))


def _best(fit: FitRecord) -> str:
    if not fit.scores:
        return ""
    average = ", averaged over steps" if fit.averaged else ""
    return f"Lower is better. The weights of step {fit.best_step} were kept{average}."


def _lead(run: TrainingRecord, verb: str) -> Markup:
    fit = run.training
    source = Markup(" from <strong>{}</strong>").format(run.reference) if run.reference else ""
    what = "Distilled" if verb == "heal" else "Fine-tuned"
    steps = plural(fit.steps, "step")
    budget = "" if fit.budget == steps.replace(NBSP, " ") else f" ({fit.budget})"
    return Markup("{what}{source} for {steps}{budget} on {images} in {time}.").format(
        what=what,
        source=source,
        steps=steps,
        budget=budget,
        images=plural(fit.images, "image"),
        time=duration(fit.seconds),
    )


def _tiles(run: TrainingRecord) -> list[Tile]:
    fit, now = run.training, run.accuracy.pruned
    before = run.accuracy.before
    tiles = [_score_tile(fit)]
    if now is not None and now.top1 is not None:
        found = difference(run.accuracy)
        start = f"{before.top1:.1f} → " if before is not None and before.top1 is not None else ""
        tiles.append(
            Tile(
                name="Top-1 after training",
                value=percent(now.top1 / 100),
                detail=f"{start}{now.top1:.1f}",
                more=f"standard error {now.stderr or 0:.1f}, {plural(now.n, 'image')}",
            )
        )
        if found is not None:
            tiles.append(
                Tile(
                    name="Top-1, dense → now",
                    value=points(found.points),
                    detail=error_words(found, now.n),
                    state=found.change,
                )
            )
    else:
        tiles.append(
            Tile(name="Top-1", value="not measured", detail="give --eval-data", absent=True)
        )
    return [*tiles, cost_tile("MACs", run.macs, "MACs"), cost_tile("Parameters", run.params, "")][
        :4
    ]


def _score_tile(fit: FitRecord) -> Tile:
    if not fit.scores:
        return Tile(name="Held-out score", value="not measured", absent=True)
    name = next(iter(fit.scores[0].values))
    first = fit.scores[0].values[name]
    kept = [score for score in fit.scores if score.step == fit.best_step]
    own = [score for score in kept if score.averaged is fit.averaged] or kept or [fit.scores[-1]]
    last = own[-1].values.get(name, first)
    return Tile(
        name=f"Held-out {_words(name)}",
        value=f"{last:.3g}",
        detail=f"{first:.3g} → {last:.3g}",
        more="lower is better",
        state="better" if last < first else "worse" if last > first else "even",
    )


def _comparisons(run: TrainingRecord) -> list[tuple[str, str, str]]:
    """Rows of name, top-1 and top-5."""
    names = (("dense", "reference"), ("before", "before training"), ("pruned", "after training"))
    rows = []
    for key, name in names:
        accuracy: AccuracyRecord | None = getattr(run.accuracy, key)
        if accuracy is not None and accuracy.top1 is not None:
            top5 = "–" if accuracy.top5 is None else percent(accuracy.top5 / 100)
            rows.append(
                (name, f"{percent(accuracy.top1 / 100)} ± {accuracy.stderr or 0:.1f}", top5)
            )
    return rows


def _provenance(run: TrainingRecord) -> list[tuple[str, str]]:
    rows = [
        ("Reference", run.reference or "none"),
        ("Preset", run.preset or "none: not pruned"),
        ("Budget", run.budget or "none"),
        ("Images", f"{plural(run.data.images, 'image')} from {run.data.source}"),
        ("Fingerprint", run.data.fingerprint or "none: images given as tensors"),
        ("Unreadable", ", ".join(run.data.unreadable) or "none"),
        ("Processes", str(run.training.processes)),
    ]
    stages = ", ".join(f"{name} {duration(value)}" for name, value in run.stages.items())
    versions = ", ".join(
        f"{name} {run.environment[name]}"
        for name in ("secateur", "torch", "timm", "python")
        if name in run.environment
    )
    return [*rows, ("Time", stages), ("Versions", versions)]
