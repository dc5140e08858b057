import re
from html.parser import HTMLParser
from typing import Any

import pytest
from pydantic import ValidationError

from secateur.report import render

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>"
FETCHES = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text, scripts and styles apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self.open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self.open == "style":
            self.styles.append(data)
        else:
            self.text += data.replace("\u00a0", " ")


def test_numbers_of_the_record_are_on_the_page(measured: dict[str, Any]) -> None:
    text = Page(render(measured)).text
    macs, params = measured["macs"], measured["params"]
    assert f"{macs['dense']:,}" in text and f"{macs['pruned']:,}" in text
    assert f"{params['dense']:,}" in text and f"{params['pruned']:,}" in text
    assert f"{100 * macs['pruned'] / macs['dense']:.1f} %" in text
    assert f"{100 * params['pruned'] / params['dense']:.1f} %" in text
    assert "keep 50 % of the query/key dims and 34 % of the MLP neurons in every layer" in text
    assert "drop 1 attention layer" in text
    assert "75.4 ± 1.7 → 68.9 ± 1.8" in text and "650 images" in text and "−6.5 points" in text
    assert "68.3 %" in text and "6.21 → 4.24 ms" in text
    assert "median, IQR 0.22 ms; eager, batch 8, cpu, 2 threads, 40 runs" in text
    assert "0.312 nats" in text and "80.4 %" in text
    assert all(name in text for name in ("observe", "weigh", "plan", "cut"))


def test_provenance_is_complete(measured: dict[str, Any]) -> None:
    text = Page(render(measured)).text
    for value in (
        measured["command"],
        measured["preset"],
        measured["preset_title"],
        measured["preset_source"],
        "sha256:9f2c1b",
        "n01/bad.JPEG",
        "1 calibration image could not be read",
        measured["notes"][0],
        f"torch {measured['environment']['torch']}",
        "timm:some_vit",
    ):
        assert value in text


def test_how_a_cost_budget_was_met(record: dict[str, Any]) -> None:
    target = {"unit": "macs", "limit": 5e6, "reached": 4_900_000, "shortfall_percent": 2.0}
    text = Page(render(record | {"budget": "5M macs", "target": target})).text
    assert "4,900,000 of at most 5,000,000 MACs; 2.00 % unused" in text


def test_every_layer_has_its_row(record: dict[str, Any]) -> None:
    page = Page(render(record))
    html = render(record)
    for branch in record["branches"]:
        assert html.count(f"</span>{branch['id']}</td>") == 1  # a row
        assert html.count(f'data-branch="{branch["id"]}"') == 1
    kept = next(b for b in record["branches"] if b["kind"] == "attention" and b["kept"])
    assert kept["dense"]["qk"] == 16 and kept["kept"]["qk"] == 8
    assert "3×16 → 3×8" in page.text
    hidden = record["branches"][1]["kept"]["hidden"]
    assert hidden < 192 and f"192 → {hidden}" in page.text


def test_what_was_not_measured_is_said(record: dict[str, Any]) -> None:
    text = Page(render(record)).text
    assert text.count("not measured") == 4  # two headline tiles, two table rows
    assert "give --eval-data" in text and "give --latency" in text
    assert "Top-5" not in text


def test_without_labels_the_agreement_is_the_headline(measured: dict[str, Any]) -> None:
    measured["accuracy"]["pruned"] |= {"top1": None, "top5": None, "stderr": None}
    text = Page(render(measured)).text
    assert "Agreement with the dense model" in text and "on 650 images without labels" in text


def test_the_page_fetches_nothing(measured: dict[str, Any]) -> None:
    page = Page(render(measured))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
        assert not FETCHES & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "")
    assert not any("url(" in style or "@import" in style for style in page.styles)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    assert not re.search(r"https?:", policy)


def test_a_page_has_no_script_and_is_small(measured: dict[str, Any]) -> None:
    html = render(measured)
    assert not Page(html).scripts and "<script" not in html
    assert html.count('<div class="chart">') == 2
    assert len(html.encode()) <= 1_500_000


def test_hostile_text_stays_text(measured: dict[str, Any]) -> None:
    clean = Page(render(measured))
    for key in ("model", "command", "preset", "preset_title", "preset_source", "budget"):
        measured[key] = HOSTILE
    measured["notes"] = [HOSTILE]
    measured["data"] |= {"source": HOSTILE, "fingerprint": HOSTILE, "unreadable": [HOSTILE]}
    measured["latency"][0]["runtime"] = measured["latency"][1]["runtime"] = HOSTILE
    measured["environment"]["torch"] = HOSTILE
    measured["seconds"][HOSTILE] = 1.0
    for number, branch in enumerate(measured["branches"]):
        branch["id"] = f"{HOSTILE}{number}"
    page = Page(render(measured))
    assert len(page.scripts) == len(clean.scripts) == 0
    assert not any(tag == "img" for tag, _ in page.tags)
    assert page.text.count(HOSTILE) > 10
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in clean.tags}


def test_the_same_record_gives_the_same_page(measured: dict[str, Any]) -> None:
    assert render(measured) == render(measured)


@pytest.mark.parametrize("change", [{"macs": None}, {"branches": []}, {"seconds": "long"}])
def test_what_is_no_record_is_refused(record: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        render(record | change)
