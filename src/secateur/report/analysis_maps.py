"""What boxes draw on an analysis page: shares of costs, and maps of depths, heads and pairs."""

from secateur.report.analysis_record import AnalysisRecord, Matrix
from secateur.report.analysis_words import degradation_words
from secateur.report.drawing.chart import Axis, Box, Boxes, Chart
from secateur.report.words import percent

MOST_TOLD = 26
"""Rows of a map up to which every cell tells its value on hover."""


def shares_figure(record: AnalysisRecord) -> Chart:
    """Where parameters, MACs and time are."""
    titles = {"params": "parameters", "macs": "MACs", "ms": "time"}
    names = {
        "qk": ("query/key", "qk"),
        "vo": ("value", "vo"),
        "attention": ("attention", "attention"),
        "hidden": ("MLP", "hidden"),
        "rest": ("embedding, norms, head", "removed"),
    }
    boxes: dict[str, list[Box]] = {part: [] for part in names}
    for row, share in enumerate(record.shares):
        start = 0.0
        for part, (name, _) in names.items():
            value = share.parts.get(part, 0.0)
            if not value:
                continue
            boxes[part].append(
                Box(
                    x0=start,
                    x1=start + value,
                    y0=row - 0.16,
                    y1=row + 0.28,
                    text=percent(value, 0) if value > 0.09 else "",
                    hover=f"{name}: {percent(value)} of the {titles[share.what]}",
                )
            )
            start += value
    rows = [(float(row), titles[share.what]) for row, share in enumerate(record.shares)]
    return Chart(
        height=60 + 62 * len(rows),
        x=Axis(low=0, high=1, ticks=()),
        y=Axis(low=len(rows) - 0.5, high=-0.6, ticks=tuple(rows), grid=False),
        marks=tuple(
            Boxes(name=names[part][0], colour=names[part][1], boxes=tuple(own))
            for part, own in boxes.items()
            if own
        ),
    )


def similarity_figure(values: Matrix, points: tuple[int, ...], name: str) -> Chart:
    """Similarity between depths as a map; point 0 is the stream before the first block."""
    labels = ["in" if point == 0 else str(point - 1) for point in points]
    hover = [
        [
            f"after {_point(a)} and after {_point(b)}\n"
            + ("not comparable" if value is None else f"{name} {value:.3f}")
            for value, b in zip(row, points, strict=True)
        ]
        for row, a in zip(values, points, strict=True)
    ]
    return _map(
        values,
        (labels, "block"),
        (labels, "block"),
        hover,
        high=1.0,
        colour="attention",
        small=True,
    )


def heads_figure(record: AnalysisRecord) -> Chart:
    """For every head, how alike the head of its layer most like it is."""
    rows: list[list[float | None]] = []
    hover: list[list[str]] = []
    width = max(len(layer.cka) for layer in record.heads)
    for layer in record.heads:
        row: list[float | None] = [None] * width
        words = [""] * width
        for head, own in enumerate(layer.cka):
            near = max((v or 0.0, j) for j, v in enumerate(own) if j != head)
            row[head] = near[0]
            words[head] = f"{layer.owner}, head {head}\nnearest: head {near[1]}, CKA {near[0]:.2f}"
        rows.append(row)
        hover.append(words)
    labels = [layer.owner.removeprefix("blocks.").removesuffix(".attn") for layer in record.heads]
    high = max(0.5, *(value or 0.0 for row in rows for value in row))
    return _map(
        tuple(map(tuple, rows)),
        ([str(head) for head in range(width)], "head"),
        (labels, "block"),
        hover,
        high=high,
        colour="heads",
    )


def interactions_figure(record: AnalysisRecord) -> Chart | None:
    """Degradation of two layers together less the sum of both alone."""
    found = record.interactions
    if found is None:
        return None
    largest = max((abs(v) for row in found.excess for v in row if v is not None), default=1.0)
    hover = [
        [
            ""
            if value is None or both is None
            else f"{a} and {b}\ntogether "
            f"{degradation_words(both, record.unit)}\n{value:+.3f} beyond the sum of both alone"
            for value, both, b in zip(row, together, found.owners, strict=True)
        ]
        for row, together, a in zip(found.excess, found.together, found.owners, strict=True)
    ]
    labels = [_short(name) for name in found.owners]
    return _map(found.excess, (labels, ""), (labels, ""), hover, high=largest, colour=None)


def _map(
    values: Matrix,
    x: tuple[list[str], str],
    y: tuple[list[str], str],
    hover: list[list[str]],
    *,
    high: float,
    colour: str | None,
    small: bool = False,
) -> Chart:
    """A matrix as a map, its first row on top; without a colour, it diverges around zero."""
    # WHY: the words of tens of blocks against each other would be most of the page.
    told_all = len(y[0]) <= MOST_TOLD
    cells = tuple(
        Box(
            x0=column - 0.48,
            x1=column + 0.48,
            y0=row - 0.48,
            y1=row + 0.48,
            colour=colour or ("dropped" if value > 0 else "qk"),
            opacity=round(min(abs(value) / (high or 1.0), 1.0), 2),
            hover=words if told_all else "",
        )
        for row, (line, told) in enumerate(zip(values, hover, strict=True))
        for column, (value, words) in enumerate(zip(line, told, strict=True))
        if value is not None
    )
    ends = (f"{high:.2g}", "0") if colour else (f"+{high:.2g}", f"−{high:.2g}")
    return Chart(
        x=Axis(title=x[1], low=-0.5, high=len(x[0]) - 0.5, ticks=_ticks(x[0])),
        y=Axis(title=y[1], low=len(y[0]) - 0.5, high=-0.5, ticks=_ticks(y[0]), grid=False),
        marks=(Boxes(name="", colour=colour or "qk", boxes=cells, legend=False),),
        height=250 if small else max(260, min(420, 90 + 22 * len(y[0]))),
        shades=((colour or "qk/dropped", ends[1], ends[0]),),
    )


def _ticks(labels: list[str]) -> tuple[tuple[float, str], ...]:
    return tuple((float(place), label) for place, label in enumerate(labels))


def _point(point: int) -> str:
    return "the embedding" if point == 0 else f"block {point - 1}"


def _short(name: str) -> str:
    return name.removeprefix("blocks.")
