"""The page of a study: every structure, score and repair side by side, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.report.drawing.chart import Chart
from secateur.report.figures import FULL, HALF, figure_html, page
from secateur.report.study_figures import (
    NAMES,
    STRUCTURES,
    oracle_figure,
    overview_figure,
    structure_figure,
)
from secateur.report.study_record import Curve, ModelRecord, Point, Span, StudyRecord
from secateur.report.study_words import REPAIRS, findings, p_words
from secateur.report.words import count, milliseconds, percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart with its heading."""

    title: str
    about: str
    html: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table; `key` colours its first cell."""

    key: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPage:
    """What the page shows of one model."""

    name: str
    source: str
    tiles: tuple[tuple[str, str, str], ...]
    overview: tuple[Panel, ...]
    structures: tuple[Panel, ...]
    oracle: Markup | None
    losses: tuple[Row, ...]
    repairs: tuple[Row, ...]
    scores: tuple[Row, ...]
    ranks: tuple[Row, ...]


def render_study(record: StudyRecord) -> str:
    """The whole page as HTML that opens offline."""
    return page(
        "study.html.j2",
        title=record.title,
        lead=_lead(record),
        findings=findings(record),
        models=[_model(model) for model in record.models],
        setting=record.setting,
        unreachable=record.unreachable,
        failures=record.failures,
    )


def _lead(record: StudyRecord) -> str:
    done = record.counts.get("ok", 0)
    words = [f"{done:,} of {record.cells:,} cells measured"]
    if out := record.counts.get("unreachable", 0):
        words.append(f"{out:,} out of reach")
    if failed := record.counts.get("failed", 0):
        words.append(f"{failed:,} failed")
    left = record.cells - sum(record.counts.values())
    if left:
        words.append(f"{left:,} not run yet")
    return ", ".join(words) + "."


def _model(model: ModelRecord) -> ModelPage:
    return ModelPage(
        name=model.name,
        source=model.source,
        tiles=_tiles(model),
        overview=tuple(_overview(model)),
        structures=tuple(_structures(model)),
        oracle=_html(oracle_figure(model.oracle), "Rank correlation of scores with the oracle."),
        losses=tuple(_loss_row(model, curve, p) for curve in model.best for p in curve.points),
        repairs=tuple(
            Row(
                key=STRUCTURES[row.structure][0],
                cells=(
                    NAMES[row.structure],
                    row.budget,
                    REPAIRS[row.repair],
                    _small(row.kl_before),
                    _small(row.kl_after),
                    _nats(row.saved),
                    p_words(row.p, row.saved),
                ),
            )
            for row in model.repairs
        ),
        scores=tuple(
            Row(
                key=STRUCTURES[row.structure][0],
                cells=(
                    NAMES[row.structure],
                    REPAIRS[row.repair],
                    row.score,
                    _small(row.kl),
                    _nats(row.better),
                    p_words(row.p, row.better),
                ),
            )
            for row in sorted(
                model.scores, key=lambda r: (list(NAMES).index(r.structure), r.repair, r.kl)
            )
        ),
        ranks=tuple(
            Row(
                key=STRUCTURES[row.structure][0],
                cells=(
                    NAMES[row.structure],
                    row.score,
                    f"{row.rho:+.2f}",
                    f"{row.low:+.2f} … {row.high:+.2f}",
                    str(row.layers),
                ),
            )
            for row in sorted(model.oracle, key=lambda r: (list(NAMES).index(r.structure), -r.rho))
        ),
    )


def _tiles(model: ModelRecord) -> tuple[tuple[str, str, str], ...]:
    dense = model.dense
    tiles = []
    if (top1 := dense.get("top1")) is not None:
        tiles.append(("Dense top-1", f"{top1:.1f} %", f"± {dense.get('stderr') or 0:.1f}"))
    tiles.append(("Evaluation images", f"{dense.get('n') or 0:,.0f}", "the same for every cell"))
    params = f"dense, {count(dense.get('params') or 0)} parameters"
    tiles.append(("MACs", count(dense.get("macs") or 0), params))
    if model.dense_ms is not None:
        tiles.append(("Latency", milliseconds(model.dense_ms), f"dense, {model.runtime}"))
    return tuple(tiles)


def _overview(model: ModelRecord) -> list[Panel]:
    about = (
        "Of every structure the score with the least mean divergence on these images, under the "
        "last repair. Bands: 95 % bootstrap over images and calibration draws. Smaller models "
        "are to the right. Broad and grey: the best of everything in the grid, scores and repairs "
        "alike."
    )
    charts = []
    by_macs = _html(overview_figure(model, latency=False), "Degradation over MACs by structure.")
    if by_macs is not None:
        charts.append(Panel(title="Per MAC", about=about, html=by_macs))
    by_time = _html(overview_figure(model, latency=True), "Degradation over latency by structure.")
    if by_time is not None:
        timed = f"The same over measured time ({model.runtime}), dense and pruned in turns."
        charts.append(Panel(title="Per millisecond", about=timed, html=by_time))
    return charts


def _structures(model: ModelRecord) -> list[Panel]:
    charts = []
    repairs = list(dict.fromkeys(curve.repair for curve in model.curves))
    for structure in dict.fromkeys(curve.structure for curve in model.curves):
        for repair in repairs:
            html = _html(
                structure_figure(model, structure, repair),
                f"Every score on {NAMES[structure]}, {REPAIRS[repair]}.",
                HALF,
            )
            if html is not None:
                name = NAMES[structure]
                title = f"{name[0].upper()}{name[1:]}"
                charts.append(Panel(title=title, about=REPAIRS[repair], html=html))
    return charts


def _loss_row(model: ModelRecord, curve: Curve, point: Point) -> Row:
    saved = 100 * (1 - point.macs)
    faster = None if point.latency is None else 100 * (1 - point.latency)
    lost = point.lost.mean if point.lost is not None else None
    return Row(
        key=STRUCTURES[curve.structure][0],
        cells=(
            NAMES[curve.structure],
            curve.score,
            point.budget,
            percent(point.macs),
            _time(model, point),
            "–" if point.top1 is None else _points(point.top1),
            _nats(point.kl),
            _rate(lost, saved),
            "–" if faster is None else _rate(lost, faster),
        ),
    )


def _time(model: ModelRecord, point: Point) -> str:
    if point.latency is None:
        return "–"
    if model.dense_ms is None:
        return percent(point.latency)
    return milliseconds(point.latency * model.dense_ms)


def _rate(lost: float | None, saved: float) -> str:
    """Points of top-1 lost per percent saved."""
    if lost is None or saved <= 0.5:
        return "–"
    return f"{lost / saved:+.2f}"


def _points(span: Span) -> str:
    return f"{span.mean:.1f} [{span.low:.1f}, {span.high:.1f}]"


def _nats(span: Span) -> str:
    return f"{_small(span.mean)} [{_small(span.low)}, {_small(span.high)}]"


def _small(value: float) -> str:
    """Three digits behind the point, more where that would be nothing."""
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.1g}"


def _html(figure: Chart | None, label: str, widths: tuple[float, ...] = FULL) -> Markup | None:
    return None if figure is None else figure_html(figure, label=label, widths=widths)


__all__: Sequence[str] = ("render_study",)
