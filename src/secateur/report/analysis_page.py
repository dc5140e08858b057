"""The page of an analysis: the redundancy of a model, to be understood in two minutes."""

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from secateur.report.analysis_figures import (
    curves_figure,
    importance_figure,
    ranks_figure,
    score_figure,
    series_figure,
    spectra_figure,
)
from secateur.report.analysis_maps import (
    heads_figure,
    interactions_figure,
    shares_figure,
    similarity_figure,
)
from secateur.report.analysis_record import AnalysisRecord
from secateur.report.analysis_words import (
    NAMES,
    degradation_words,
    findings,
    next_command,
    score_finding,
)
from secateur.report.figures import HALF, QUARTER, Tile, figure_html, page
from secateur.report.words import count, duration, milliseconds, percent, plural, significant

PARTS = {"class": "class token", "patches": "patches"}
STAGES = {
    "observe": "one pass over all other than probe images; forward and back over some",
    "layers and blocks": "every layer and every block left out",
    "more and more layers": "more and more of them left out together",
    "pairs of layers": "pairs of layers left out",
    "sizes of one layer": "single groups of single layers made smaller",
    "sizes of all layers": "one group made smaller in all layers",
    "score": "scores of all criteria",
    "remove": "all removals above",
    "time": "timing layers",
    "summarise": "similarities and spectra from the sums",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart with its heading and one sentence on how to read it."""

    title: str
    about: str
    figure: Markup


def render_analysis(record: Mapping[str, object]) -> str:
    """The whole page as HTML that opens offline, from an analysis' record as plain data.

    Raises pydantic.ValidationError for anything that is no such record.
    """
    found = AnalysisRecord.model_validate(record)
    return page(
        "analysis.html.j2",
        found=found,
        model=found.model or "A vision transformer",
        findings=findings(found),
        why_next=next_command(found)[0],
        next_command=next_command(found)[1],
        tiles=_tiles(found),
        importance=figure_html(
            importance_figure(found), label="Degradation of leaving out each layer alone."
        ),
        series=figure_html(
            series_figure(found), label="Degradation against MACs left for every structure."
        ),
        shares=figure_html(shares_figure(found), label="Parameters, MACs and time by structure."),
        has_time=found.ms is not None,
        curves=_curves(found),
        similarity=_similarity(found),
        inside=_inside(found),
        spectra=_spectra(found),
        interactions=_interactions(found),
        scores=[
            Chart(
                title=score.title,
                about="ρ = " + ("–" if score.rho is None else f"{score.rho:.2f}"),
                figure=figure_html(
                    score_figure(found, score.name),
                    label=f"Measured degradation over the rank by {score.name}.",
                    widths=QUARTER,
                ),
            )
            for score in found.scores
        ],
        rhos=[
            (score.name, score.title, *map(_rho, (score.rho, score.rho_attention, score.rho_mlp)))
            for score in found.scores
        ],
        score_finding=score_finding(found),
        layers=_layer_rows(found),
        costs=_cost_rows(found),
        total_passes=f"{sum(cost.passes or 0 for cost in found.costs):.0f}",
        provenance=_provenance(found),
    )


def _tiles(found: AnalysisRecord) -> list[Tile]:
    droppable = [layer for layer in found.layers if layer.droppable]
    passes = sum(cost.passes or 0 for cost in found.costs)
    seconds = sum(cost.seconds or 0 for cost in found.costs)
    return [
        Tile(
            name="Layers that can go together",
            value=f"{len(droppable)} of {len(found.layers)}",
            detail=f"within {found.tolerance:g} {found.unit}, measured",
            more=f"{sum(x.kind == 'attention' for x in droppable)} attention, "
            f"{sum(x.kind == 'mlp' for x in droppable)} MLP",
            meter=len(droppable) / len(found.layers),
        ),
        Tile(
            name="Size",
            value=count(found.params),
            detail=f"parameters, {count(found.macs)}MACs",
            more=f"{plural(len(found.blocks), 'block')} of width {found.width}",
        ),
        Tile(
            name="Time per pass",
            value="not measured" if found.ms is None else milliseconds(found.ms),
            detail=found.setting or "give --latency",
            absent=found.ms is None,
        ),
        Tile(
            name="What this took",
            value=f"{passes:.0f} passes",
            detail=f"over {plural(found.data.images, 'image')}",
            more=f"{duration(seconds)} in all, effort {found.effort}",
        ),
    ]


def _curves(found: AnalysisRecord) -> list[Chart]:
    charts = []
    for group in ("qk", "vo", "heads", "hidden"):
        figure = curves_figure(found, group)
        if figure is not None:
            charts.append(
                Chart(
                    title=NAMES[group][0].upper() + NAMES[group][1:],
                    about="",
                    figure=figure_html(
                        figure,
                        label=f"Degradation over {NAMES[group]} left, by layer.",
                        widths=QUARTER,
                    ),
                )
            )
    return charts


def _similarity(found: AnalysisRecord) -> list[Chart]:
    charts = []
    for part, own in found.similarity.items():
        every = tuple(range(len(own.cosine)))
        for name, values, points in (("cosine", own.cosine, every), ("CKA", own.cka, own.points)):
            charts.append(
                Chart(
                    title=f"{name}, {PARTS.get(part, part)}",
                    about="",
                    figure=figure_html(
                        similarity_figure(values, points, name),
                        label=f"{name} of the stream between depths, {PARTS.get(part, part)}.",
                        widths=QUARTER,
                    ),
                )
            )
    return charts


def _inside(found: AnalysisRecord) -> list[Chart]:
    charts = []
    if found.spectra:
        charts.append(
            Chart(
                title="Dims in use",
                about="Effective rank of each group as a share of its size: 100 % uses all alike.",
                figure=figure_html(
                    ranks_figure(found), label="Effective rank over depth.", widths=HALF
                ),
            )
        )
    if found.heads:
        charts.append(
            Chart(
                title="Similar heads",
                about="CKA of every head with the head of its layer most like it: a strong colour "
                "marks a head that another nearly gives.",
                figure=figure_html(heads_figure(found), label="Similarity of heads.", widths=HALF),
            )
        )
    return charts


def _spectra(found: AnalysisRecord) -> list[Chart]:
    charts = []
    for group in ("qk", "vo", "hidden"):
        figure = spectra_figure(found, group)
        if figure is not None:
            name = NAMES[group]
            label = f"Share of the spectrum held by the largest {name}, by layer."
            charts.append(
                Chart(
                    title=name[0].upper() + name[1:],
                    about="",
                    figure=figure_html(figure, label=label, widths=QUARTER),
                )
            )
    return charts


def _interactions(found: AnalysisRecord) -> Markup | None:
    figure = interactions_figure(found)
    if figure is None:
        return None
    label = "Degradation of pairs of layers beyond the sum of both alone."
    return figure_html(figure, label=label, widths=HALF)


def _layer_rows(found: AnalysisRecord) -> list[dict[str, object]]:
    worst = max(layer.degradation for layer in found.layers)
    rows = []
    opened: set[int] = set()
    for layer in found.layers:
        rows.append(
            {
                "opens": layer.block not in opened,
                "block": layer.block,
                "id": layer.id,
                "colour": "attention" if layer.kind == "attention" else "hidden",
                "params": count(layer.params),
                "macs": count(layer.macs),
                "ms": "–" if layer.ms is None else milliseconds(layer.ms),
                "change": percent(layer.update),
                "turn": f"{layer.turn:.4f}",
                "degradation": degradation_words(layer.degradation, "")
                + (f"± {significant(layer.stderr)}" if layer.stderr >= 0.005 else ""),
                "agreement": _share_with_error(layer.agreement, found.probe_images),
                "droppable": layer.droppable,
                "bar": layer.degradation / max(worst, 1e-12),
            }
        )
        opened.add(layer.block)
    return rows


def _share_with_error(share: float | None, images: int) -> str:
    """A share of images with its binomial standard error, in points."""
    if share is None:
        return "–"
    return f"{percent(share)} ± {100 * (share * (1 - share) / images) ** 0.5:.1f}"


def _cost_rows(found: AnalysisRecord) -> list[tuple[str, str, str]]:
    return [
        (
            STAGES.get(cost.stage, cost.stage),
            "" if cost.passes is None else f"{cost.passes:.2f}",
            "" if cost.seconds is None else duration(cost.seconds),
        )
        for cost in found.costs
    ]


def _provenance(found: AnalysisRecord) -> list[tuple[str, str]]:
    rows = [
        ("images", f"{found.data.images} from {found.data.source}"),
        ("probe images", f"{found.probe_images} of them, on which degradation is measured"),
        ("fingerprint", found.data.fingerprint or "none: images given as tensors"),
        ("seed", str(found.seed)),
        ("versions", ", ".join(f"{name} {v}" for name, v in found.environment.items())),
    ]
    return rows + [(f"no {group}", why) for group, why in found.refusals.items()]


def _rho(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
