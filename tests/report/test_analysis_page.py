"""The page of an analysis: its numbers, its charts, and that nothing gets out or in."""

import copy
import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from secateur.report.analysis_figures import FLOOR, importance_figure, spectra_figure
from secateur.report.analysis_page import render_analysis
from secateur.report.analysis_record import AnalysisRecord
from secateur.report.analysis_words import (
    degradation_at,
    degradation_words,
    findings,
    next_command,
    score_finding,
)
from secateur.report.drawing.chart_svg import chart_svg
from tests.report.test_render import FETCHES, HOSTILE, Page

Record = dict[str, Any]


@pytest.fixture
def analysis(shared_analysis: Record) -> Record:
    return copy.deepcopy(shared_analysis)


def test_the_page_leads_with_its_findings(analysis: Record) -> None:
    page = Page(render_analysis(analysis))
    told = findings(AnalysisRecord.model_validate(analysis))
    assert 3 <= len(told) <= 4
    text = " ".join(page.text.split())
    positions = [text.index(" ".join(sentence.replace("\u00a0", " ").split())) for sentence in told]
    assert positions == sorted(positions) and positions[-1] < text.index(
        "Degradation of each layer alone"
    )


def test_every_layer_and_stage_is_on_the_page(analysis: Record) -> None:
    page = Page(render_analysis(analysis))
    for layer in analysis["layers"]:
        assert layer["id"] in page.text
        told = degradation_words(layer["degradation"], "").strip()
        assert told.replace("\u00a0", " ") in page.text
    for word in ("Block Influence", "built-in method", "None", "nan"):
        assert word not in page.text
    assert "secateur analyze some" in page.text and "forward passes over the 40 images" in page.text
    record = AnalysisRecord.model_validate(analysis)
    assert sum(len(line.x) for line in importance_figure(record).lines) == len(record.layers)
    assert page.text.count("tolerance") >= 2


def test_records_of_earlier_versions_give_the_same_page(analysis: Record) -> None:
    earlier = json.loads(json.dumps(analysis).replace('"degradation"', '"damage"'))
    assert earlier != analysis and render_analysis(earlier) == render_analysis(analysis)


def test_answers_and_the_next_command_come_first(analysis: Record) -> None:
    for series in analysis["series"]:
        series["degradation"] = [9.0 for _ in series["degradation"]]
    best = analysis["series"][0]
    best |= {"macs": [0.2, *best["macs"][1:]], "degradation": [0.05, *best["degradation"][1:]]}
    analysis["data"] |= {"source": "my images", "fingerprint": "sha256:1"}
    for layer in analysis["layers"]:
        layer["droppable"] = False
    why, command = next_command(AnalysisRecord.model_validate(analysis))
    assert command == (
        "secateur prune timm:some_vit --data 'my images' --budget '80% macs' --out smaller"
    )
    assert "20\u00a0% of the MACs" in why
    html = render_analysis(analysis)
    assert html.index("secateur prune") < html.index('class="tiles"') < html.index("<details")
    assert html.count("<details") >= 6 and "<details open" not in html
    best["degradation"] = [9.0 for _ in best["degradation"]]
    assert "'90% macs'" in next_command(AnalysisRecord.model_validate(analysis))[1]


def test_predictions_kept_come_before_degradations(analysis: Record) -> None:
    for sentence in findings(AnalysisRecord.model_validate(analysis))[1:]:
        if "nats" in sentence:
            assert sentence.index("of predictions stay") < sentence.index("nats")


def test_uncertainty_is_measured_and_drawn(analysis: Record) -> None:
    record = AnalysisRecord.model_validate(analysis)
    assert all(layer.stderr > 0 for layer in record.layers)
    for line in importance_figure(record).lines:
        pairs = zip(line.low, line.y, line.high, strict=True)
        assert all(y is not None and low < y < high for low, y, high in pairs if y != FLOOR)


def test_the_page_fetches_nothing(analysis: Record) -> None:
    html = render_analysis(analysis)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not FETCHES & attributes.keys(), (tag, attributes)
    assert "<script" not in html and len(html.encode()) <= 1_500_000
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None and not re.search(r"https?:", policy)


def test_hostile_text_stays_text(analysis: Record) -> None:
    clean = Page(render_analysis(analysis))
    analysis |= {"model": HOSTILE, "command": HOSTILE, "notes": [HOSTILE]}
    analysis["data"]["source"] = HOSTILE
    renamed = {layer["id"]: f"{HOSTILE}{i}" for i, layer in enumerate(analysis["layers"])}
    for layer in analysis["layers"]:
        layer["id"] = renamed[layer["id"]]
    for key in ("curves", "heads", "spectra"):
        for row in analysis[key]:
            row["owner"] = renamed[row["owner"]]
    analysis["interactions"]["owners"] = [renamed[n] for n in analysis["interactions"]["owners"]]
    page = Page(render_analysis(analysis))
    assert len(page.scripts) == len(clean.scripts)
    assert not any(tag == "img" for tag, _ in page.tags)


def test_ticks_of_degradations_say_their_whole_value(analysis: Record) -> None:
    for layer in analysis["layers"]:
        layer["degradation"] = 0.3 if layer["kind"] == "mlp" else 3.0
    chart = importance_figure(AnalysisRecord.model_validate(analysis))
    svg = chart_svg(chart, 600)
    assert chart.y.scale == "log" and all(f">{tick}</text>" in svg for tick in ("0.5", "1", "2"))


def test_spectra_are_drawn_layer_by_layer(analysis: Record) -> None:
    record = AnalysisRecord.model_validate(analysis)
    for group in ("qk", "vo", "hidden"):
        own = [spectrum for spectrum in record.spectra if spectrum.group == group]
        figure = spectra_figure(record, group)
        assert figure is not None and len(figure.lines) == len(own) > 0
        for line, spectrum in zip(figure.lines, own, strict=True):
            assert line.y[0] == 0 and list(line.y[1:]) == list(spectrum.held)
            assert 0 < line.x[1] <= line.x[-1] <= 1


def test_without_some_parts(analysis: Record) -> None:
    analysis |= {"interactions": None, "heads": [], "curves": [], "spectra": [], "scores": []}
    for layer in analysis["layers"]:
        layer["scores"] = {}
    text = Page(render_analysis(analysis)).text
    assert "Do removals add up?" not in text and "Sizes of single layers" not in text
    assert "Spectra" not in text


@pytest.mark.parametrize("change", [{"layers": []}, {"macs": None}, {"series": 3}])
def test_what_is_no_record_is_refused(analysis: Record, change: Record) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        render_analysis(analysis | change)


def test_findings_say_what_the_numbers_say(analysis: Record) -> None:
    for i, layer in enumerate(analysis["layers"]):
        layer |= {"degradation": 0.5 if layer["kind"] == "mlp" else 0.05, "droppable": i in (0, 2)}
    analysis["layers"][1]["degradation"] = 4.0
    together = next(s for s in analysis["series"] if s["structure"] == "layers")
    together |= {"degradation": [0.01, 0.05, 0.2], "agreement": [1.0, 0.9, 0.5]}
    told = findings(AnalysisRecord.model_validate(analysis))
    saved = f"{100 * together['macs'][1]:.1f}\u00a0% of the MACs and 90\u00a0% of predictions stay"
    assert told[0].startswith("2 of 3 attention layers can go together within 0.1\u00a0nats")
    assert saved in told[0]
    assert any("attention layers matter less than MLPs" in sentence for sentence in told)
    assert any("blocks.0.mlp must stay: without it" in s and "4.00\u00a0nats" in s for s in told)
    analysis["layers"][2]["droppable"] = False
    together["degradation"] = [0.01, 0.15, 0.2]
    alone = findings(AnalysisRecord.model_validate(analysis))[0]
    assert alone.startswith(f"Only {analysis['layers'][0]['id']} can go within 0.1\u00a0nats: ")
    for score in analysis["scores"]:
        score["rho"] = 0.1
    assert "No cheap score" in score_finding(AnalysisRecord.model_validate(analysis))


def test_degradation_at_a_saving() -> None:
    from secateur.report.analysis_record import SeriesRecord

    series = SeriesRecord(
        structure="mlp", what=("1", "2"), macs=(0.1, 0.3), params=(0.1, 0.3), ms=(None, None),
        degradation=(0.2, 1.0), agreement=(None, None),
    )  # fmt: skip
    assert degradation_at(series, 0.05) == pytest.approx(0.1)
    assert degradation_at(series, 0.2) == pytest.approx(0.6)
    assert degradation_at(series, 0.31) is None


def test_the_page_of_a_model_of_forty_blocks_is_small(analysis: Record) -> None:
    pair, blocks = analysis["layers"][:2], range(40)
    analysis["layers"] = [
        layer | {"id": layer["id"].replace(".0.", f".{block}."), "block": block}
        for block in blocks
        for layer in pair
    ]
    for key in ("curves", "spectra"):
        own = [row for row in analysis[key] if row["owner"].startswith("blocks.0.")]
        assert own
        analysis[key] = [
            row | {"owner": row["owner"].replace(".0.", f".{block}.")}
            for block in blocks
            for row in own
        ]
    for similarity in analysis["similarity"].values():
        square = [[0.123] * 41] * 41
        similarity |= {"cosine": square, "cka": square, "points": list(range(41))}
    page = render_analysis(analysis)
    assert page.count("blocks.39.mlp") > 1 and len(page.encode()) <= 1_500_000
