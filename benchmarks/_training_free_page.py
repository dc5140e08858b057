"""The page of benchmarks/training_free.py: floors, budgets, differences, cost, a plot."""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

from _common import RESULTS, Row, Store, command, difference, table, top1, versions, write_page

from secateur.report.drawing.chart import Axis, Chart, Dash, Line, Rule
from secateur.report.drawing.chart_svg import file_svg
from secateur.report.figures import left_axis

SHAPES = ("50% qk", "25% qk", "50% vo", "50% hidden")
COSTS = ("80% macs", "70% macs", "60% macs", "50% macs")
FLOOR = {"50% qk": 80.8, "25% qk": 72.7, "50% vo": 71.4, "50% hidden": 60.0}
"""Top-1 that the spectral preset has to reach with uniform widths."""
PEER = "torch-pruning"
CAPTION = {
    "spectral": "spectral, knapsack",
    "spectral-quick": "spectral, knapsack, quick probing",
    "spectral-uniform": "spectral, uniform widths",
    PEER: "Torch-Pruning Taylor (best of 2 variants)",
}


def write_report(store: Store, dense: Row, args: argparse.Namespace) -> None:
    """Write docs/results/training_free.md and its plot from the rows measured with `args`."""
    rows = _by_method(store)
    _add_best_peer(rows)
    picture = _plot(rows, dense)
    floors, costs = _methods(rows, SHAPES), _shown(_methods(rows, COSTS))
    shapes_head = ("method", *(f"{budget} kept" for budget in SHAPES))
    costs_head = ("method", *COSTS)
    parts = [
        "# Training-free pruning, all methods side by side",
        f"ViT-Tiny/16 at 224 px, top-1 in percent ± binomial standard error on {dense['n']} "
        f"ImageNet validation images; {args.images} calibration images, no training. Dense: "
        f"**{top1({'status': 'ok', **dense})}**. Every method uses the same images in the same "
        "process. A budget is a share of the dense MACs, with QKᵀ and AV counted.",
        "## One group at a time, the same share in every layer",
        table(
            shapes_head,
            [
                *[_line(rows, name, SHAPES) for name in floors],
                ("*floor for spectral*", *(f"*{FLOOR[budget]:.1f}*" for budget in SHAPES)),
            ],
        ),
        "## One budget over all groups",
        f"![Accuracy over MACs]({picture.name})",
        table(costs_head, [_line(rows, name, COSTS) for name in costs]),
        "## Gain of `spectral` with knapsack over each method, in points, on the same images",
        "± standard error of the paired difference.",
        table(costs_head, [_gain(rows, name, COSTS) for name in costs if name != "spectral"]),
        "## Distance from the dense model",
        "Agreement with the dense model's class in percent / KL(dense ‖ pruned) in nats.",
        table(costs_head, [_line(rows, name, COSTS, _fidelity) for name in costs]),
        "## Size reached: share of dense MACs / parameters in percent",
        table(costs_head, [_line(rows, name, COSTS, _kept) for name in costs]),
        "## Cost of pruning",
        "Median over the cells above, everything from evidence to the finished model, in seconds "
        "and in forward passes of the dense model over the calibration images, which were timed "
        f"right before and after each cell with {args.threads} thread(s).",
        table(("method", "forward passes", "most", "seconds"), _cost_lines(rows, floors, costs)),
        *_peer_part(rows),
        *_reasons(rows),
        "## Reproduce",
        f"```\npip install -e '.[bench]'\n{command('training_free', args)}\n```",
        f"{versions('torch-pruning')}. Seed {args.seed}. The order of the calibration images and "
        "which of a folder are taken depend only on the seed.",
    ]
    write_page("training_free", "\n\n".join(parts))


def _by_method(store: Store) -> dict[str, dict[str, Row]]:
    rows: dict[str, dict[str, Row]] = {}
    for row in store.rows.values():
        if row["cell"].endswith(store.suffix) and "method" in row:
            rows.setdefault(row["method"], {})[row["budget"]] = row
    return rows


def _add_best_peer(rows: dict[str, dict[str, Row]]) -> None:
    """The peer's best variant at each budget, chosen by the accuracy shown: in its favour."""
    best: dict[str, Row] = {}
    for name in [name for name in rows if name.startswith(PEER)]:
        for budget, row in rows[name].items():
            if row["status"] == "ok" and row["top1"] > best.get(budget, {"top1": -1.0})["top1"]:
                best[budget] = row
    if best:
        rows[PEER] = best


def _methods(rows: dict[str, dict[str, Row]], budgets: tuple[str, ...]) -> list[str]:
    """Methods with any of these budgets, best first (by mean top-1 over what they reach)."""

    def mean(name: str) -> float:
        good = [r["top1"] for b, r in rows[name].items() if b in budgets and r["status"] == "ok"]
        return statistics.mean(good) if good else -1.0

    present = [name for name in rows if set(budgets) & set(rows[name])]
    return sorted(present, key=mean, reverse=True)


def _shown(names: list[str]) -> list[str]:
    """Without the peer's single variants, which have a table of their own."""
    return [name for name in names if not name.startswith(f"{PEER} ")]


def _line(
    rows: dict[str, dict[str, Row]],
    name: str,
    budgets: tuple[str, ...],
    cell: Callable[[Row | None], str] = top1,
) -> tuple[str, ...]:
    return (CAPTION.get(name, name), *(cell(rows[name].get(budget)) for budget in budgets))


def _gain(rows: dict[str, dict[str, Row]], name: str, budgets: tuple[str, ...]) -> tuple[str, ...]:
    cells = []
    for budget in budgets:
        ours, other = rows.get("spectral", {}).get(budget), rows[name].get(budget)
        if ours is None or other is None or {ours["status"], other["status"]} != {"ok"}:
            cells.append("–")
            continue
        points, error = difference(ours, other)
        cells.append(f"{points:+.1f} ± {error:.1f}")
    return (CAPTION.get(name, name), *cells)


def _fidelity(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return "–"
    return f"{row['agreement']:.1f} / {row['kl']:.2f}"


def _kept(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return "–"
    return f"{100 * row['macs']:.2f} / {100 * row['params']:.1f}"


def _cost_lines(
    rows: dict[str, dict[str, Row]], floors: list[str], costs: list[str]
) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for names, budgets, what in ((costs, COSTS, "budgets"), (floors, SHAPES, "one group")):
        for name in names:
            good = [r for b, r in rows[name].items() if b in budgets and "passes" in r]
            if good:
                passes = [row["passes"] for row in good]
                lines.append(
                    (
                        f"{CAPTION.get(name, name)} ({what})",
                        f"{statistics.median(passes):.1f}",
                        f"{max(passes):.1f}",
                        f"{statistics.median(row['seconds'] for row in good):.1f}",
                    )
                )
    return lines


def _peer_part(rows: dict[str, dict[str, Row]]) -> list[str]:
    variants = sorted(name for name in rows if name.startswith(f"{PEER} "))
    if not variants:
        return []
    return [
        "## Torch-Pruning's variants",
        "`GroupTaylorImportance` with gradients of the cross-entropy on the labelled calibration "
        "images, head dims pruned alike in every head, as in its timm example. The residual width "
        "is not pruned (the example's `--bottleneck`); *global* "
        "ranks across layers, *local* takes the same share in each. The ratio is bisected to the "
        "MACs and the softmax keeps the dense temperature. The tables above show the best at each "
        "budget, chosen by the accuracy shown.",
        table(("variant", *COSTS), [_line(rows, name, COSTS) for name in variants]),
    ]


def _reasons(rows: dict[str, dict[str, Row]]) -> list[str]:
    found: dict[str, list[str]] = {}
    for name, own in rows.items():
        for budget, row in own.items():
            if row["status"] != "ok":
                found.setdefault(f"{row['status']}: {row['reason']}", []).append(f"{name} {budget}")
    if not found:
        return []
    lines = [f"- {', '.join(cells)}: {reason}" for reason, cells in found.items()]
    return ["## Cells without a number", "\n".join(lines)]


COLOURS = ("qk", "vo", "hidden", "heads", "attention", "dropped")
DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")


def _plot(rows: dict[str, dict[str, Row]], dense: Row) -> Path:
    lines = []
    names = [name for name in _shown(_methods(rows, COSTS)) if name != "spectral-quick"]
    for number, name in enumerate(names):
        good = [r for b, r in rows[name].items() if b in COSTS and r["status"] == "ok"]
        good.sort(key=lambda row: -row["macs"])
        lines.append(
            Line(
                name=CAPTION.get(name, name),
                x=tuple(row["macs"] for row in good),
                y=tuple(row["top1"] for row in good),
                low=tuple(row["top1"] - row["stderr"] for row in good),
                high=tuple(row["top1"] + row["stderr"] for row in good),
                colour=COLOURS[number % len(COLOURS)],
                dash=DASHES[number // len(COLOURS)],
                width=3 if name.startswith("spectral") else 1.5,
                size=3.5,
            )
        )
    chart = Chart(
        height=460,
        x=left_axis("MACs left", [x for line in lines for x in line.x]),
        y=Axis(low=0, high=100),
        marks=tuple(lines),
        rules=(Rule(y=dense["top1"], label="dense", dash="dot"),),
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "training_free.svg"
    title = "Top-1 in % ± standard error, by MACs left"
    path.write_text(file_svg([(title, chart)], 980), encoding="utf-8")
    return path
