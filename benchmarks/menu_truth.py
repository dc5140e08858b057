"""Do candidates tell the truth? Predicted against measured degradation, at sizes no candidate list
was fitted to.

`python benchmarks/menu_truth.py` measures and write the page
with `--report` it only writes the page from what was measured.

Sizes between and beyond the fitted ones are probed on the images of the fit and on other images.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from _common import RESULTS, Bench, Row, Store, command, parser, table, versions, write_page
from scipy.stats import spearmanr
from torch import Tensor

from secateur.ablation.candidates import FULL, QUICK, Probed, measure_candidates
from secateur.ablation.probe_runner import ProbeRunner
from secateur.ablation.refitted import Refitted, refit_needs
from secateur.allocation.candidates import Limits
from secateur.data.batches import as_batches
from secateur.data.split import all_images, first_images, fit_and_held
from secateur.methods.spectral import token_weights
from secateur.models.host import host_of
from secateur.models.types import GroupName
from secateur.report.drawing.chart import Axis, Chart, Line
from secateur.report.drawing.chart_svg import file_svg
from secateur.statistics import observe

GROUPS: tuple[GroupName, ...] = ("qk", "vo", "heads", "hidden", "branch", "block")
EXTRA = (0.875, 0.625, 0.375, 0.1875)
"""Shares measured besides: none of them is a share that a candidate list is fitted to."""
WHERE = {"same": "the images of the fit", "other": "other images"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Candidates by effort and measurements by images."""

    candidates: dict[str, Probed]
    truth: dict[str, Probed]


def main() -> None:
    args = parser("Predicted against measured degradation of menus.").parse_args()
    store = Store("menu_truth", args)
    row = store.get("points")
    if row is None and not args.report:
        bench = Bench(args)
        row = store.run(("points",), lambda: {"points": points(measure(bench)), **bench.setting()})
    if row is None or row["status"] != "ok":
        raise SystemExit("nothing measured with these settings: run without --report first")
    write_report(row, args)


def measure(bench: Bench) -> Measured:
    """Fit candidates as the spectral method does in both efforts, then probe other sizes."""
    model = bench.model
    host = host_of(model)
    batches = as_batches(bench.calibration)
    tokens = token_weights(host, batches, bench.seed)
    statistics = observe(model, batches, refit_needs(GROUPS), token_weights=tokens)

    def probe(images_PCHW: Tensor, shares: tuple[float, ...]) -> Probed:
        run = ProbeRunner.of(host, images_PCHW)
        return measure_candidates(run, Refitted(statistics, Limits()), GROUPS, Limits(), shares)

    efforts = {"full": FULL, "quick": QUICK}
    apart = fit_and_held(batches)[1]
    held = {name: all_images(first_images(apart, e.images)) for name, e in efforts.items()}
    candidates = {name: probe(held[name], effort.shares) for name, effort in efforts.items()}
    others_PCHW = torch.cat([images for images, _ in bench.validation])[: FULL.images]
    every = (*FULL.shares, *EXTRA)
    truth = {"same": probe(held["full"], EXTRA), "other": probe(others_PCHW, every)}
    return Measured(candidates=candidates, truth=truth)


def points(measured: Measured) -> list[Row]:
    """Predicted and measured degradation of every probe that a candidate list was not fitted to.

    On other images sizes of the fit are points too, marked `fitted`: there only the images are
    new. On the images of the fit they would only repeat what the candidate list was told.
    """
    found = []
    for effort, probed in measured.candidates.items():
        candidates = {entry.key: entry for entry in probed.candidates}
        fitted = {(p.owner, p.group, p.size) for p in probed.probes}
        for where, truth in measured.truth.items():
            for probe in truth.probes:
                known = (probe.owner, probe.group, probe.size) in fitted
                if not (known and where == "same"):
                    entry = candidates[probe.owner, probe.group]
                    found.append(
                        {
                            "effort": effort,
                            "images": where,
                            "fitted": known,
                            "owner": probe.owner,
                            "group": probe.group,
                            "size": probe.size,
                            "predicted": entry.loss(probe.size),
                            "measured": probe.divergence,
                        }
                    )
    return found


def write_report(row: Row, args: argparse.Namespace) -> None:
    """Write docs/results/menu_truth.md and its plot."""
    every: list[Row] = row["points"]
    _plot([p for p in every if p["effort"] == "full"])
    parts = [
        "# Predicted and measured degradation of candidates",
        "For each group of each branch of ViT-Tiny, the candidates predict the degradation "
        "KL(dense ‖ reduced) in nats of every size. The prediction is fitted to a few measured "
        "sizes "
        f"({_shares(FULL.shares)} of the dense size on {FULL.images} images; quick: "
        f"{_shares(QUICK.shares)} on {QUICK.images}) and interpolated along an analytic error "
        f"curve. Here other shares ({_shares(EXTRA)}) are measured too, on the images of the fit "
        f"and on {FULL.images} validation images, and compared with the prediction; statistics "
        f"from {row['n_calibration']} calibration images.",
        "## Spearman's rank correlation of predicted and measured degradation",
        "Sizes held out from the fit; number of probes in brackets. The goal is 0.9 over all.",
        table(_HEAD, _spearman_lines(every, lambda p: not p["fitted"])),
        "The same at the sizes of the fit on other images, the effect of new images alone:",
        table(_HEAD, _spearman_lines(every, lambda p: p["fitted"])),
        "## Ratio of predicted to measured degradation",
        "Median and 10th–90th percentile of the ratio over held-out sizes: 1 is exact, and only "
        "differences between groups affect a plan.",
        table(_HEAD, _ratio_lines([p for p in every if not p["fitted"]])),
        "![Predicted against measured degradation](menu_truth.svg)",
        "## Reproduce",
        f"```\npip install -e '.[bench]'\n{command('menu_truth', args)}\n```",
        f"{versions('scipy')}. Seed {args.seed}.",
    ]
    write_page("menu_truth", "\n\n".join(parts))


_HEAD = ("effort", "measured on", "all", *GROUPS)


def _spearman_lines(every: list[Row], keep: Callable[[Row], bool]) -> list[tuple[str, ...]]:
    return _lines([p for p in every if keep(p)], _spearman)


def _ratio_lines(every: list[Row]) -> list[tuple[str, ...]]:
    return _lines(every, _ratio)


def _lines(every: list[Row], cell: Callable[[list[Row]], str]) -> list[tuple[str, ...]]:
    lines = []
    for effort in ("full", "quick"):
        for where, title in WHERE.items():
            own = [p for p in every if p["effort"] == effort and p["images"] == where]
            if own:
                groups = ([p for p in own if p["group"] == group] for group in GROUPS)
                lines.append((effort, title, cell(own), *(cell(group) for group in groups)))
    return lines


def _spearman(found: list[Row]) -> str:
    if len(found) < 3:
        return "–"
    rank = spearmanr([p["predicted"] for p in found], [p["measured"] for p in found]).statistic
    return f"{rank:.3f} ({len(found)})"


def _ratio(found: list[Row]) -> str:
    if not found:
        return "–"
    tiny = 1e-9
    ratios = torch.tensor(
        [max(p["predicted"], tiny) / max(p["measured"], tiny) for p in found], dtype=torch.float64
    )
    low, middle, high = ratios.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _shares(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.4g}" for share in sorted(shares, reverse=True))


COLOURS = {"branch": "attention", "block": "dropped"}


def _plot(every: list[Row]) -> None:
    panels = []
    for where, title in WHERE.items():
        here = [p for p in every if p["images"] == where]
        pairs = [(max(p["predicted"], 1e-6), max(p["measured"], 1e-6)) for p in here]
        low, high = min(map(min, pairs)), max(map(max, pairs))
        marks = [
            Line(name="equal", x=(low, high), y=(low, high), colour="muted", width=1, dots=False)
        ]
        for group in GROUPS:
            own = [pair for p, pair in zip(here, pairs, strict=True) if p["group"] == group]
            if own:
                marks.append(
                    Line(
                        name=group,
                        x=tuple(x for x, _ in own),
                        y=tuple(y for _, y in own),
                        colour=COLOURS.get(group, group),
                        line=False,
                        size=3,
                        opacity=0.8,
                    )
                )
        chart = Chart(
            height=460,
            x=Axis(title="predicted, nats", scale="log", low=low, high=high),
            y=Axis(title="measured, nats", scale="log", low=low, high=high),
            marks=tuple(marks),
            direct=False,
        )
        panels.append((f"Predicted and measured degradation on {title}", chart))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "menu_truth.svg").write_text(file_svg(panels, 560), encoding="utf-8")


if __name__ == "__main__":
    main()
