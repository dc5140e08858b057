"""The page of one pruning run: what was asked, what is left, what it costs and how to redo it."""

from collections.abc import Mapping

from markupsafe import Markup

from secateur.report.advice import advise, difference, error_words
from secateur.report.drawing.anatomy_picture import svg
from secateur.report.figures import (
    FULL,
    HALF,
    Tile,
    figure_html,
    macs_figure,
    page,
    shares_figure,
)
from secateur.report.record import (
    GROUPS,
    AccuracyRecord,
    RunRecord,
    blocks_of,
    dropped,
    kept_share,
    latency_settings,
)
from secateur.report.run_tables import (
    branch_rows,
    comparisons,
    cost_tile,
    provenance,
    setting_words,
)
from secateur.report.training_page import curves
from secateur.report.words import (
    GROUP_NAMES,
    NBSP,
    budget_words,
    duration,
    listed,
    milliseconds,
    percent,
    plural,
    points,
    significant,
)

WIDE = 16
"""From this many blocks on, charts need the whole width."""


def render(record: Mapping[str, object]) -> str:
    """The whole page as HTML that opens offline, from `Result.record()` as plain data.

    An optional key `model` names the dense model. Raises pydantic.ValidationError for anything
    that is not a run's record.
    """
    run = RunRecord.model_validate(record)
    shares, total = shares_figure(run), sum(run.seconds.values())
    wide = len(blocks_of(run.branches)) > WIDE
    widths = FULL if wide or shares is None else HALF
    return page(
        "run.html.j2",
        run=run,
        model=run.model or "A vision transformer",
        lead=_lead(run),
        tiles=[
            cost_tile("MACs", run.macs, "MACs"),
            cost_tile("Parameters", run.params, ""),
            _accuracy_tile(run),
            _latency_tile(run),
        ],
        stages=[
            (name, duration(seconds), seconds / max(total, 1e-9))
            for name, seconds in run.seconds.items()
        ],
        total=duration(total),
        picture=Markup(svg(run, heading=False)),
        removed=_removed(run),
        macs=figure_html(
            macs_figure(run), label="MACs of every branch, dense and pruned.", widths=widths
        ),
        shares=None
        if shares is None
        else figure_html(
            shares, label="Kept share of every group that changed, block by block.", widths=widths
        ),
        wide=wide,
        advice=advise(run),
        curves=[] if run.learning is None else curves(run.learning.phases),
        comparisons=list(comparisons(run)),
        provenance=list(provenance(run)),
        branches=list(branch_rows(run)),
    )


def _lead(run: RunRecord) -> Markup:
    left = f"{percent(run.macs.kept)} of the MACs and {percent(run.params.kept)} of the parameters"
    dense, pruned = run.accuracy.dense, run.accuracy.pruned
    accuracy = ""
    if dense and pruned and dense.top1 is not None and pruned.top1 is not None:
        accuracy = f"; top-1 went from {dense.top1:.1f} to {percent(pruned.top1 / 100)}"
    return Markup(
        "Asked to <strong>{budget}</strong>. Method: <strong>{title}</strong> "
        "(<code>{name}</code>). Left: {left}{accuracy}."
    ).format(
        budget=budget_words(run.budget),
        title=run.preset_title,
        name=run.preset,
        left=left,
        accuracy=accuracy,
    )


def _accuracy_tile(run: RunRecord) -> Tile:
    dense, pruned = run.accuracy.dense, run.accuracy.pruned
    if pruned is None:
        return Tile(
            name="Top-1 accuracy", value="not measured", detail="give --eval-data", absent=True
        )
    if pruned.top1 is None:
        agreement = pruned.agreement
        return Tile(
            name="Agreement with the dense model",
            value="not measured" if agreement is None else percent(agreement / 100),
            detail="same top class",
            more=f"on {plural(pruned.n, 'image')} without labels",
            meter=None if agreement is None else agreement / 100,
            absent=agreement is None,
        )
    found = difference(run.accuracy)
    if found is None or dense is None:
        return Tile(
            name="Top-1 accuracy",
            value=percent(pruned.top1 / 100),
            detail="dense not measured",
            more=f"standard error {pruned.stderr or 0:.1f}, {plural(pruned.n, 'image')}",
            meter=pruned.top1 / 100,
        )
    return Tile(
        name="Top-1, dense → pruned",
        value=points(found.points),
        detail=f"{_with_error(dense)} → {_with_error(pruned)}{NBSP}%",
        more=error_words(found, pruned.n),
        state=found.change,
    )


def _latency_tile(run: RunRecord) -> Tile:
    settings = [rows for rows in latency_settings(run.latency) if len(rows) > 1]
    if not settings:
        return Tile(name="Latency", value="not measured", detail="give --latency", absent=True)
    dense, pruned = settings[0][0], settings[0][-1]
    return Tile(
        name="Latency, pruned / dense",
        value=percent(pruned.ratio),
        detail=f"{significant(dense.median_ms)} → {milliseconds(pruned.median_ms)}",
        more=f"median, IQR {milliseconds(pruned.iqr_ms)}; {setting_words(pruned)}",
        meter=min(pruned.ratio, 1.0),
    )


def _with_error(accuracy: AccuracyRecord) -> str:
    text = f"{accuracy.top1:.1f}"
    return text if accuracy.stderr is None else f"{text}{NBSP}±{NBSP}{accuracy.stderr:.1f}"


def _removed(run: RunRecord) -> str:
    """What is gone in one sentence: whole layers, then units of the layers that stay."""
    whole = []
    for kind, noun in (("attention", "attention layer"), ("mlp", "MLP")):
        if gone := dropped(run.branches, kind):
            total = sum(branch.kind == kind for branch in run.branches)
            whole.append(f"{gone} of {plural(total, noun)}")
    staying = [branch for branch in run.branches if branch.kept is not None]
    units = []
    for group in GROUPS:
        share = kept_share(staying, group)
        if share is not None and share < 1:
            units.append(f"{percent(1 - share, 0)} of the {GROUP_NAMES[group]}")
    if run.width is not None and run.width.kept < 1:
        units.append(f"{percent(1 - run.width.kept, 0)} of the {GROUP_NAMES['width']}")
    if not whole and not units:
        return "Nothing was removed."
    both = [listed(whole)] if whole else []
    if units:
        both.append(f"{'in the layers that stay, ' if whole else ''}{listed(units)}")
    return f"Removed: {'; '.join(both)}."
