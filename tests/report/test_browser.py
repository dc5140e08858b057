"""Every page in a real browser: no console error, no overflow, contrast that can be read (WCAG AA).

The pages stand in frames of a page of the test's own, whose script looks into them, so that they
keep their policy of no scripts.
"""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from secateur.report import render
from secateur.report.analysis_page import render_analysis
from secateur.report.study_page import render_study
from secateur.report.training_page import render_training
from tests.report.test_study_page import CURVE, MODEL, STUDY

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")
WIDTHS = (1200, 500)
MODES = {"dark": 0, "light": 1}
LOOK = r"""
const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
function over(top, below) { return [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])); }
function ground(element) {
  if (!element) return [255, 255, 255];
  const style = element.ownerDocument.defaultView.getComputedStyle(element);
  const own = element.namespaceURI.endsWith("svg") ? [0, 0, 0, 0] : rgba(style.backgroundColor);
  return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement));
}
function light(c) {
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const [r, g, b] = c.map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
}
function contrast(a, b) {
  const [x, y] = [light(a), light(b)].sort((p, q) => p - q);
  return (y + .05) / (x + .05);
}
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, poor = [];
  let texts = 0;
  page.querySelectorAll("details").forEach(d => { d.open = true; });
  for (const element of page.body.querySelectorAll("*")) {
    if (["STYLE", "SCRIPT", "TITLE", "title"].includes(element.tagName)) continue;
    const own = [...element.childNodes].filter(n => n.nodeType === 3);
    const words = own.map(n => n.data.trim()).join("");
    if (!words || !element.checkVisibility()) continue;
    const style = view.getComputedStyle(element), below = ground(element);
    let colour = rgba(element.tagName === "text" ? style.fill : style.color);
    for (let e = element; e; e = e.parentElement) colour[3] *= view.getComputedStyle(e).opacity;
    texts += 1;
    const found = contrast(over(colour, below), below);
    if (found < 4.5) poor.push([element.tagName, words.slice(0, 40), found.toFixed(2)]);
  }
  const root = page.documentElement, wide = [];
  if (root.scrollWidth > root.clientWidth)
    for (const e of page.body.querySelectorAll("*"))
      if (e.getBoundingClientRect().right > root.clientWidth + 1)
        wide.push(e.tagName + "." + e.className);
  return {page: frame.title, width: view.innerWidth, texts, poor, overflow: wide,
          dark: view.matchMedia("(prefers-color-scheme: dark)").matches};
}
window.addEventListener("load", () => {
  document.getElementById("found").textContent =
    JSON.stringify([...document.querySelectorAll("iframe")].map(look));
});
"""


@pytest.fixture(scope="session")
def pages(shared_record: Any, shared_analysis: Any, shared_training: Any) -> dict[str, str]:
    """One page of every kind, with everything on it that it can show."""
    sides = {"n": 650, "agreement": 80.0, "kl": 0.3, "top5": 92.0}
    accuracy = {
        "dense": {"top1": 75.4, "stderr": 1.7, **sides},
        "pruned": {"top1": 68.9, "stderr": 1.8, "change_stderr": 1.1, **sides},
    }
    told = {"model": "timm:" + "a_long_name" * 8, "accuracy": accuracy, "notes": ["A note."]}
    learned = {"learning": {"phases": {"search": shared_training["training"]}}}
    other = replace(CURVE, structure="mlp", score="cka")
    model = replace(MODEL, curves=(*MODEL.curves, other), best=(CURVE, other), dense_ms=20.0)
    return {
        "run": render(shared_record | told),
        "learned": render(shared_record | told | learned),
        "healed": render_training(shared_training, "heal"),
        "analysis": render_analysis(shared_analysis),
        "study": render_study(replace(STUDY, models=(model,))),
    }


def opened(path: Path, mode: str) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what was said on the console."""
    assert BROWSER is not None
    run = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={path.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={MODES[mode]}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def looked_at(pages: dict[str, str], mode: str, folder: Path) -> tuple[Any, list[str]]:
    """What was found on every page in every width, and the console."""
    frames = "".join(
        f'<iframe title="{name}" width="{width}" height="900" style="border: 0" '
        f'srcdoc="{escape(html)}"></iframe>'
        for name, html in pages.items()
        for width in WIDTHS
    )
    harness = folder / "harness.html"
    harness.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<pre id="found"></pre>{frames}<script>{LOOK}</script>',
        encoding="utf-8",
    )
    document, console = opened(harness, mode)
    match = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    assert match is not None
    return json.loads(unescape(match[1])), console


@pytest.mark.parametrize("mode", MODES)
def test_pages_can_be_read(pages: dict[str, str], mode: str, tmp_path: Path) -> None:
    found, console = looked_at(pages, mode, tmp_path)
    assert console == []
    assert [(look["page"], look["width"]) for look in found] == [
        (name, width) for name in pages for width in WIDTHS
    ]
    for look in found:
        assert look["dark"] is (mode == "dark") and look["texts"] > 30
        assert look["poor"] == [], (look["page"], look["width"])
        assert look["overflow"] == [], (look["page"], look["width"])


def test_the_look_finds_what_is_wrong(pages: dict[str, str], tmp_path: Path) -> None:
    bad = (
        '<p style="color: #999">pale</p><p style="width: 700px">wide</p>'
        '<svg><text fill="var(--hidden)">2 %</text></svg><img src="http://nowhere.invalid/a.png">'
    )
    page = pages["run"].replace("</main>", f"{bad}</main>")
    (broad, slim), console = looked_at({"bad": page}, "light", tmp_path)
    assert [words for _, words, _ in broad["poor"]] == ["pale", "2 %"] and not broad["overflow"]
    assert "P." in slim["overflow"]
    assert console and "Content Security Policy" in console[0]


@pytest.mark.parametrize("kind", ["run", "learned", "healed", "analysis", "study"])
def test_pages_are_small_and_have_no_script(pages: dict[str, str], kind: str) -> None:
    assert len(pages[kind].encode()) <= 1_500_000
    assert "<script" not in pages[kind] and "url(" not in pages[kind]
